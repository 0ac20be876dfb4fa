"""What the documents tell a user to type, and where they send a reader."""

import re
import shlex
from pathlib import Path

import pytest

from eval.prm_benchmarks import PRM_BENCHMARKS
from reasoning_rl.cli import VERBS, load, main
from reasoning_rl.options import parse, several_values

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LIST_OPTIONS = {"data": ("--against",)}


def commands(page: Path) -> list[str]:
    """The commands of a page's shell blocks, a continued one on one line, comments and `...` left out."""
    found = []
    for language, block in FENCE.findall(page.read_text("utf-8")):
        if language in ("bash", "sh"):
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            found += [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return found


def words_of(command: str) -> list[str]:
    words = [word for word in shlex.split(command, comments=True) if word != "..."]
    while words and re.fullmatch(r"[A-Z_0-9]+=\S*", words[0]):
        words.pop(0)
    return words[: next((i for i, word in enumerate(words) if word in (">", "|", "&", "&&")), len(words))]


SHELL = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(
    ("page", "command"), SHELL, ids=[f"{page.stem}: {command[:60]}" for page, command in SHELL]
)
def test_every_command_in_the_documents_is_one_that_exists(page, command) -> None:
    words = words_of(command)
    if words[0] in ("for", "done"):
        return
    if words[0] == "stepwell":
        check_verb(words[1:])
    elif words[0] in ("accelerate", "torchrun"):
        script = next(i for i, word in enumerate(words) if word.endswith(".py"))
        assert (ROOT / words[script]).is_file()
        for word in words[:script]:
            assert not word.startswith("configs/") or (ROOT / word).is_file(), word
        verb = re.search(r'main\(\["([\w-]+)"', (ROOT / words[script]).read_text("utf-8"))
        assert verb, words[script]
        check_verb([verb[1], *words[script + 1 :]])
    elif words[0] == "python" and words[1].endswith(".py"):
        text = (ROOT / words[1]).read_text("utf-8")
        for word in words[2:]:
            name = word.partition("=")[0]
            assert not name.startswith("--") or f'"{name}"' in text, f"{words[1]} knows no {name}"
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] in ("pip", "source", "vllm", "eval", "mkdir", "tensorboard", "head"), (
            f"what is {words[0]}?"
        )


def check_verb(words: list[str]) -> None:
    if words[:1] in (["--help"], ["--version"]):
        return
    verb = VERBS[words[0]]
    settings = load(verb.settings)
    rest = [word for word in words[1:] if word not in ("--help", "--deterministic")]
    if verb.more and rest and rest[0] in PRM_BENCHMARKS:
        settings = load(verb.more[1])
    # A file of the reader's own is not here; one of the repository is read.
    for i, word in enumerate(rest):
        if word == "--config" and not rest[i + 1].startswith("configs/"):
            del rest[i : i + 2]
            break
    for option in LIST_OPTIONS.get(words[0], ()):
        if option in rest:
            rest = several_values(rest, option)
    parsed = parse(rest, settings, flags=verb.flags, positional=len(rest))
    if verb.names and parsed.positional:
        assert parsed.positional[0] in {name for where in verb.names for name in load(where)}


def runs_at_once(words: list[str]) -> bool:
    """Needs neither a model nor data of the reader's."""
    if words[:1] != ["stepwell"]:
        return False
    asks = {"--help", "--list", "--version"} & set(words)
    return bool(asks) or words[1] in ("plan", "init", "completion") or words[1:3] == ["data", "demo"]


QUICK = sorted({command for _, command in SHELL if runs_at_once(words_of(command))})


@pytest.mark.parametrize("command", QUICK)
def test_commands_that_need_nothing_run_as_they_stand(command, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    main(words_of(command)[1:])
    assert capsys.readouterr().out.strip()


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        found.add(plain.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target}: no such file"
        assert ROOT in there.parents, f"{target}: outside the repository"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_every_page_is_reached_from_the_readme(page) -> None:
    """In two steps at most."""
    near = {page.name for page in linked(PAGES[0])}
    assert page.name in near | {far.name for first in linked(PAGES[0]) for far in linked(first)}


def linked(page: Path) -> list[Path]:
    targets = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text("utf-8"))
    return [path for target in targets if (path := (page.parent / target).resolve()).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page) -> None:
    """Code, tests and configs in backticks, with their folder."""
    text = FENCE.sub("", page.read_text("utf-8"))
    folders = "data|prm|eval|reasoning_rl|tests|scripts|benchmarks|configs|examples|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+\.(?:py|ya?ml|json|sh|md|txt|png))\b", text):
        assert (ROOT / name).is_file(), name
