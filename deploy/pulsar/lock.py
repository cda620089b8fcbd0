"""Write jars.lock from pom.xml: every runtime jar of the broker with its sha256. Needs Maven; run only to change the broker's version.

python deploy/pulsar/lock.py
"""

import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LINE = re.compile(
    r"^\s+(?P<group>[\w.\-]+):(?P<artifact>[\w.\-]+):jar:(?:(?P<classifier>[\w.\-]+):)?(?P<version>[\w.\-]+):\w+"
)


def main() -> None:
    """Resolve with Maven, hash what it fetched and write one line a jar, sorted."""
    with tempfile.TemporaryDirectory() as folder:
        pom, listing = HERE / "pom.xml", Path(folder, "deps.txt")
        listed = ["dependency:list", "-DincludeScope=runtime", f"-DoutputFile={listing}"]
        subprocess.run(["mvn", "-q", "-B", "-f", str(pom), *listed], check=True, stdout=subprocess.DEVNULL)
        maven = ["mvn", "-q", "help:evaluate", "-Dexpression=settings.localRepository", "-DforceStdout"]
        repository = subprocess.run(maven, check=True, capture_output=True, text=True).stdout
        repository = re.sub(r"\x1b\[[0-9;]*m", "", repository).strip()
        lines = sorted(
            entry(match, Path(repository)) for match in map(LINE.match, listing.read_text().splitlines()) if match
        )
    (HERE / "jars.lock").write_text(
        "# group:artifact:version[:classifier] sha256; written by lock.py from pom.xml\n" + "\n".join(lines) + "\n"
    )


def entry(match: re.Match[str], repository: Path) -> str:
    """Return the lock line of one jar found in Maven's local repository."""
    group, artifact, version, classifier = match["group"], match["artifact"], match["version"], match["classifier"]
    suffix = f"-{classifier}" if classifier else ""
    jar = repository.joinpath(*group.split("."), artifact, version, f"{artifact}-{version}{suffix}.jar")
    coordinate = f"{group}:{artifact}:{version}" + (f":{classifier}" if classifier else "")
    return f"{coordinate} {hashlib.sha256(jar.read_bytes()).hexdigest()}"


if __name__ == "__main__":
    main()
