"""A text that differs from its golden file fails with a diff, and is written only on request."""

import pytest
from golden_files import compare


def test_a_text_is_compared_and_written(tmp_path):
    compare("folder/name", "one\ntwo", update=True, folder=tmp_path)
    assert (tmp_path / "folder" / "name.txt").read_text() == "one\ntwo\n"
    compare("folder/name", "one\ntwo\n", update=False, folder=tmp_path)


@pytest.mark.parametrize("name", ["known", "unknown"])
def test_a_difference_fails_with_a_diff_and_changes_no_file(tmp_path, name):
    compare("known", "one\ntwo", update=True, folder=tmp_path)
    with pytest.raises(pytest.fail.Exception, match=r"\+three(.|\n)*--update-golden"):
        compare(name, "one\nthree", update=False, folder=tmp_path)
    assert (tmp_path / "known.txt").read_text() == "one\ntwo\n"
    assert not (tmp_path / "unknown.txt").exists()
