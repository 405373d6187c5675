"""Holds crates/features: `cargo build -p headworks-lake` must build the same arrow, parquet and DataFusion as --workspace.

    python3 testkit/features.py            write crates/features/Cargo.toml anew (after a dependency changed)
    python3 testkit/features.py --check    only say what differs; exit code 1 if anything does
"""

import collections
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "crates/features/Cargo.toml"
# The crates that stand on arrow. The others build in seconds, with whatever features.
HELD = ["headworks-lake", "headworks-engine", "headworks-connect", "headworks-wire", "headworks-api"]


def features(*selection):
    """Of every third-party crate: its versions, and the features each is built with."""
    command = ["cargo", "tree", *selection, "-e", "normal,build,dev", "--prefix", "none", "-f", "{p}|{f}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    found = collections.defaultdict(set)
    for line in done.stdout.splitlines():
        package, _, names = line.replace(" (*)", "").partition("|")
        if not package or "(/" in package:
            continue
        name, version = package.split(" ")[:2]
        found[name, version.lstrip("v").split("+")[0]].update(filter(None, names.split(",")))
    return found


def missing():
    """The crates that one of HELD alone builds with fewer features than the workspace: their full features."""
    whole = features("--workspace")
    return {
        crate: sorted(whole[crate])
        for held in HELD
        for crate, own in features("-p", held).items()
        if own != whole[crate]
    }


def dependency(name, version, full, alone):
    major, minor = version.split(".")[:2]
    short = f"{major}.{minor}" if major == "0" else major
    listed = ", ".join(f'"{feature}"' for feature in full)
    rest = f'version = "{short}", default-features = false, features = [{listed}] }}\n'
    if alone:
        return f"{name} = {{ {rest}"
    return f'{name}-{short.replace(".", "-")} = {{ package = "{name}", {rest}'


def main():
    if "--check" in sys.argv:
        differing = missing()
        for (name, version), full in differing.items():
            print(f"{name} {version} is built with other features by one of {', '.join(HELD)} alone: {full}")
        if differing:
            print("hint: make features")
        sys.exit(1 if differing else 0)
    before = MANIFEST.read_text()
    head = before[: before.index("[dependencies]\n") + len("[dependencies]\n")]
    try:
        MANIFEST.write_text(head)
        needed = missing()
        versions = collections.Counter(name for name, _ in needed)
        lines = [dependency(*crate, full, versions[crate[0]] == 1) for crate, full in sorted(needed.items())]
        MANIFEST.write_text(head + "".join(lines))
    except BaseException:
        MANIFEST.write_text(before)
        raise


main()
