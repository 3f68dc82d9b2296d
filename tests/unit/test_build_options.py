import pytest

from reverse_image_search.build_options import parse_options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "'0' is not a positive integer"),
        (["--limit", "-5"], "'-5' is not a positive integer"),
        (["--epochs", "1.5"], "'1.5' is not a positive integer"),
        (["--top-k", "many"], "'many' is not a positive integer"),
        (["--recall", "1.5"], "'1.5' is not a number above 0 and at most 1"),
        (["--recall", "nan"], "'nan' is not a number above 0 and at most 1"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--encoder", "vgg"], "invalid choice: 'vgg'"),
        (["--quality", "--encoder", "resnet18"], "resnet18 has no such variant"),
        (["--quick", "--quality"], "--quality: not allowed with argument --quick"),
        (["--weights", "file.pth"], "--weights needs a pretrained encoder"),
        (["--dataset", "image_folder"], "name the folders of your images with --images DIR"),
        (["--dataset", "fashion_mnist", "--images", "."], "is not made of files"),
        (["--images", ".", "--add", "."], "--add and --remove go without it"),
        (["--add", ".", "--watch"], "--watch goes with --images DIR"),
        (["--add", ".", "--encoder", "resnet18"], "another encoder has to see all images"),
    ],
)
def test_wrong_options_are_refused(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        parse_options(["--output-dir", str(tmp_path), *arguments])

    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
