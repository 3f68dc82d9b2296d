"""The site that docs.sh makes: it builds, and no page or anchor that is linked is missing."""

from tests.running import REPO_ROOT, run_script


def test_site_is_built_without_a_broken_link():
    result = run_script("docs.sh", "--build")
    assert result.returncode == 0, result.stdout + result.stderr
    for page in ("index.html", "doc/tutorial/index.html", "doc/log/speed/index.html"):
        assert (REPO_ROOT / ".site" / "html" / page).is_file(), page
