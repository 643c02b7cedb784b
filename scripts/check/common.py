"""What the checks share: the repository's files."""
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def tracked(root, *patterns):
    """The repository's files, relative to `root`, new ones that git does not ignore included; without git all files."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    try:
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        names = [str(p.relative_to(root)) for pattern in patterns for p in root.rglob(pattern)]
        names = [name for name in names if not name.startswith(("target/", "build"))]
    return sorted({pathlib.Path(name) for name in names if (root / name).is_file()})


def finish(what, problems):
    """Prints the problems and ends the program."""
    for problem in problems:
        print(problem)
    print(f"{what}: {len(problems)} problems" if problems else f"{what}: ok")
    sys.exit(bool(problems))
