#!/usr/bin/env bash
# Builds the documentation site; any warning is an error. Needs `pip install -e '.[docs]'`, which
# setup_env.sh has done. Open index.html of the folder in a browser; only the search needs
# a server, such as `python -m http.server --directory output/docs`.
#
#   ./scripts/build_docs.sh             writes to output/docs
#   ./scripts/build_docs.sh FOLDER      writes to another folder, and replaces what is in it
set -euo pipefail
folder=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../output/docs}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export NO_MKDOCS_2_WARNING=1 # of the theme, which has no fixes after May 2027; Zensical continues it
exec .venv/bin/python -m mkdocs build --strict \
    --config-file projects/ViTAdapter/mkdocs.yml --site-dir "$folder"
