# `make demo` runs the main job on a simulated screen; `make test` runs the tests. Both set up .venv first; `make install` does only that.

PYTHON ?= python3
PYTHON38 ?= python3.8
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
unexport PYTHONDONTWRITEBYTECODE # what is compiled anew at each start of each job costs more than the job
INSTALL := install --quiet --disable-pip-version-check --no-compile # on one core; compileall takes all

.PHONY: install demo test slow soak long slurm bbbc013 lint format lock napari czi nd2 lif cp_measure cellprofiler cellpose instanseg stardist docs clean

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Plateloom needs Python 3.11 or newer, found ' + sys.version)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip $(INSTALL) -r requirements.txt
	$(BIN)/python -m pip $(INSTALL) --no-deps --editable .
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true # not all that packages carry is Python of this version
	touch $@

install: $(READY)
	@echo "$(BIN)/plateloom is ready"

demo: $(READY)
	test -e screens/demo/config.yaml || $(BIN)/plateloom simulate screens/demo
	$(BIN)/plateloom run screens/demo --quiet host reason

test: $(READY)
	$(BIN)/python -m pytest -q -rs -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/slurm -m "not slow" tests plateloom

# The tests that `make test` leaves out to stay below ten minutes; SHARE=1/2 and SHARE=2/2 are halves of them. Kills are in `soak`.
SHARE ?= 1/1
slow: $(READY)
	$(BIN)/python -m pytest -q -rs -n 3 --dist worksteal --ignore tests/slurm --ignore tests/test_soak.py -m "slow and not long" --share $(SHARE) tests

# A screen killed at a random time and run again, three times; `benchmarks/soak.py` does it fifty times.
soak: $(READY)
	$(BIN)/python -m pytest -q -rs -n 2 --dist worksteal tests/test_soak.py

# What takes minutes and measures what a benchmark measures too: before a release, and after a change of what it is about.
long: $(READY)
	$(BIN)/python -m pytest -q -n 2 -m long tests

# The tests that need a Slurm: root on Debian or Ubuntu gets one on the loopback, and it is stopped again in the end.
slurm: $(READY)
	tests/slurm/cluster.sh install
	PLATELOOM_SLURM=require $(BIN)/python -m pytest -q -rs tests/slurm

# A real plate: 48 wells of BBBC013 (FKHR-GFP translocation); SOURCE is the folder of its images.
bbbc013: $(READY)
	@test -n "$(SOURCE)" || { echo "usage: make bbbc013 SOURCE=folder of the BBBC013 images"; exit 2; }
	@test -d "$(SOURCE)" || { echo "no folder '$(SOURCE)'"; exit 2; }
	test -e screens/bbbc013/config.yaml || $(BIN)/python config/examples/bbbc013/prepare.py "$(SOURCE)" screens/bbbc013
	$(BIN)/plateloom run screens/bbbc013 --quiet host reason

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	test -e screens/demo/config.yaml || $(BIN)/plateloom simulate screens/demo
	$(BIN)/snakemake --directory screens/demo --lint

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

# Pinned versions of everything below requirements.in, resolved in an empty environment.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet torch==2.13.0
	build/lock/bin/pip install --quiet -r requirements.in
	{ echo "# Written by 'make lock' from requirements.in."; build/lock/bin/pip freeze | sed 's/^torch==\([0-9.]*\).*/torch==\1/'; } > requirements.txt

# Another program that must open our plates; its environment is its own, and only one test needs it.
napari: requirements.txt
	test -x build/napari/bin/python || $(PYTHON) -m venv build/napari
	build/napari/bin/pip $(INSTALL) -c requirements.txt napari-ome-zarr

# Zeiss's files through bioio, by a plugin under the GPL: an environment of its own, which only one test needs.
czi: requirements.txt
	test -x build/czi/bin/python || $(PYTHON) -m venv build/czi
	build/czi/bin/pip $(INSTALL) -c requirements.txt bioio==3.6.0 bioio-czi==3.0.1 pylibCZIrw==6.1.0 pydantic

# Packages that are optional, each on top of what .venv holds, for one test each: readers of Nikon's and of Leica's files, and
# segmentation by other people's networks.
nd2: EXTRA := nd2==0.12.0
lif: EXTRA := liffile==2026.2.16
cellpose: EXTRA := cellpose==4.2.1.1 torchvision==0.28.0
instanseg: EXTRA := instanseg-torch==0.1.2
stardist: EXTRA := stardist==0.9.2 tensorflow-cpu==2.21.0
nd2 lif cellpose instanseg stardist: $(READY)
	test -x build/$@/bin/python || $(PYTHON) -m venv build/$@
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$(build/$@/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/plateloom.pth"
	grep -v '^h5py==' requirements.txt > build/$@/constraints.txt # tensorflow wants an older one
	build/$@/bin/pip $(INSTALL) -c build/$@/constraints.txt $(EXTRA)

# The peer of benchmarks/features.py, in its faster mode, on the same numpy, scipy and numba as ours.
cp_measure: requirements.txt
	test -x build/cp_measure/bin/python || $(PYTHON) -m venv build/cp_measure
	build/cp_measure/bin/pip $(INSTALL) -c requirements.txt 'cp_measure[numba]==0.3.0'

# CellProfiler 4.2.8 asks for Python 3.8 and, for its pages and pipelines, for much that its measurements do not need.
cellprofiler: benchmarks/features_cellprofiler.txt
	test -x build/cellprofiler/bin/python || $(PYTHON38) -m venv build/cellprofiler
	build/cellprofiler/bin/pip $(INSTALL) 'setuptools<70' wheel
	build/cellprofiler/bin/pip $(INSTALL) --no-deps -r benchmarks/features_cellprofiler.txt

docs: $(READY)
	$(BIN)/plateloom config > config/config.yaml

clean:
	rm -rf screens/demo .pytest_cache .ruff_cache build
