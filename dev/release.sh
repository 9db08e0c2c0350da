#!/usr/bin/env bash
# Fills dist/ with what a release consists of: wheel, source distribution, a CycloneDX list of what the wheel brings with
# it (training packages are the user's choice, and listed in constraints.txt), and the checksums of all three.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf dist build/release
python3 -m venv build/release/tools
build/release/tools/bin/pip install -q build==1.3.0 cyclonedx-bom==7.2.1
build/release/tools/bin/python -m build --outdir dist .
python3 -m venv --without-pip build/release/core
build/release/tools/bin/pip --python build/release/core/bin/python install -q -c constraints.txt dist/*.whl
build/release/tools/bin/cyclonedx-py environment build/release/core/bin/python --output-reproducible \
  --output-file dist/skill_kd.cdx.json
cd dist
sha256sum -- * > ../build/release/SHA256SUMS
mv ../build/release/SHA256SUMS .
ls -l
