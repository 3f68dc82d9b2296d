"""What the commands have in common: exit codes, errors, and options."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from reverse_image_search.client import TritonError
from reverse_image_search.client.search import WrongAnswerError
from reverse_image_search.command_line import number_type
from reverse_image_search.gallery import GalleryError

FOUND, NOTHING_FOUND, ERROR = 0, 1, 2  # exit codes, as grep's
_INTERRUPTED = 130
# Type of an option.
cosine_similarity = number_type(
    float, lambda score: -1 <= score <= 1, "a cosine similarity from -1 to 1"
)


class TerminalError(Exception):
    """The command cannot do what it was asked for; the message says why."""


def run(name: str, command: Callable[[], int]) -> int:
    """Exit code of `command`, or of the error that stopped it, which is printed in one line."""
    try:
        return command()
    except (GalleryError, TerminalError, TritonError, WrongAnswerError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return ERROR
    except BrokenPipeError:  # as of `search.sh ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FOUND
    except KeyboardInterrupt:
        return _INTERRUPTED
