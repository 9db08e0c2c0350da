#!/usr/bin/env bash
# Fills dist/ with what a release consists of: wheel, source distribution, a CycloneDX list of what the wheel brings with
# it (training packages are the user's choice, and listed in constraints.txt), and the checksums of all three.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf dist
workplace=$(mktemp -d)
trap 'rm -rf "$workplace"' EXIT
python3 -m venv "$workplace/tools"
"$workplace/tools/bin/pip" install -q build==1.3.0 cyclonedx-bom==7.2.1
"$workplace/tools/bin/python" -m build --outdir dist .
python3 -m venv --without-pip "$workplace/core"
"$workplace/tools/bin/pip" --python "$workplace/core/bin/python" install -q -c constraints.txt dist/*.whl
"$workplace/tools/bin/cyclonedx-py" environment "$workplace/core/bin/python" --output-reproducible \
  --output-file "$(ls dist/*.whl | sed 's/-py3.*/.cdx.json/')"
(cd dist && sha256sum -- * > "$workplace/SHA256SUMS" && mv "$workplace/SHA256SUMS" .)
ls -l dist
