"""The configurations of the package, which in its repository are in the folder `configs`.

Wheels have that folder's files here, in place of this one (`package_dir` in setup.cfg).
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "configs")]
