"""What a check refuses among a command's options is one sentence; what is no option is tyro's to explain."""

import pytest

from packvit.cli import dispatch


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "digits", "--views.patch-sizes", "0"], "views.patch_sizes=(0,) needs at least one size"),
        (
            ["train", "digits", "--run-dir", "https://a/b"],
            "run_dir https://a/b must be a folder of this machine",
        ),
        (["shards", "check", "x.tar", "--fetch.timeout", "0"], "fetch.timeout=0.0 must be positive"),
        (["eval", "model", "--fetch.retries", "-1"], "fetch.retries=-1 must not be negative"),
    ],
)
def test_what_a_check_refuses_is_one_sentence(arguments, sentence, capsys):
    assert dispatch(arguments) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith(f"packvit: error: {sentence}")
    assert found.err.count("\n") == 1


@pytest.mark.parametrize("more", [["--seed", "x"], ["--nope", "1"]])
def test_what_is_no_option_is_explained(more, capsys):
    with pytest.raises(SystemExit) as ended:
        dispatch(["train", "digits", *more])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert more[0] in said
    assert said.count("packvit train digits --help") == 1
