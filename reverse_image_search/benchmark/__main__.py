"""See ``reverse_image_search/bin/benchmark.sh``."""

from reverse_image_search.benchmark.run import main

main()
