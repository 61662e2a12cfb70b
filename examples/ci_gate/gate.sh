#!/bin/sh
# Does this checkout serve slower than another one? gate.sh FOLDER, the same folder of the other checkout.
# Prints Markdown. Exit codes are those of `moesim report`: 3 if a threshold is exceeded.
set -eu
here=$(dirname "$0")
runs=${RUNS:-runs/gate}

moesim run "$1/scenario.yaml" --out "$runs/base" --force --no-plots > /dev/null
moesim run "$here/scenario.yaml" --out "$runs/new" --force --no-plots > /dev/null
moesim report "$runs/new" --baseline "$runs/base" --markdown \
  --fail-if "tpot_mean_ms > +3%" --fail-if "e2e_p95_ms > +5%"
