# `make bench` and `make test` set up everything in .venv and run; nothing needs to be installed first but Python and,
# for the native kernels, a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu') setup.py pyproject.toml
CXX_SOURCES := $(shell find csrc tests/cuda tests/cuda_on_cpu tests/cpu_alone -name '*.cpp' -o -name '*.h' -o -name '*.cu')

# What `make sanitize` runs. Not gradcheck and the like: they are PyTorch's code, slow, and reach no kernel that others do not.
SANITIZED_TESTS ?= tests/backends/test_engine.py tests/ops/test_bn_act_conv.py tests/ops/test_bn_act_max_pool.py \
  tests/ops/test_bn_add_act.py -k "not gradcheck and not opcheck and not compile"

.PHONY: bench bench-timm bench-ops test sanitize sanitize-cuda neon gpu-check triton-gate sweep pictures docs lint format clean

# Three rounds, or fewer where time is short: 2.5 minutes, but what torch.compile takes before the first round is not cut.
# `fused-resnet bench` alone takes five rounds.
bench: $(VENV)/.built
	$(BIN)/fused-resnet bench --rounds 3 --minutes 2.5 --json results.json --plot results.png

# Ten models of timm, of different structure, and one at a lower resolution: a minute each, two where torch.compile has
# not seen it yet. benchmarks/results/timm.md
TIMM_MODELS ?= seresnet50 resnetv2_50 res2net50_26w_4s hrnet_w18_small dla34 cspresnet50 ese_vovnet39b skresnet18 \
  selecsls42b mobilenetv2_100
bench-timm: $(VENV)/.built
	$(BIN)/fused-resnet bench $(addprefix timm:,$(TIMM_MODELS)) --batch 8 --rounds 3 --allocator tuned \
	  --json timm.json --plot timm.png
	$(BIN)/fused-resnet bench timm:resnetv2_50 --image-size 160 --batch 8 --rounds 3 --allocator tuned --json timm_160.json

# Per op and per block, with GB/s: pytest-benchmark.
bench-ops: $(VENV)/.built
	$(BIN)/python -m pytest benchmarks --benchmark-only

# Every model of timm's residual families, fused against stock in float64: half an hour to an hour on one core, gigabytes of memory.
# Interrupted, it goes on where it was.
sweep: $(VENV)/.built
	PYTHONPATH=tests $(BIN)/python -m support.timm_sweep

# Each worker runs on one thread, but for the tests that ask for two, whose threads must not spin while they wait.
test: $(VENV)/.built
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: the engine's and the ops' tests on a copy of the
# package that is built with them. Leaks are Python's own, and PyTorch is not instrumented. Then without Python, under
# ThreadSanitizer, in every type and activation; `make test` does so in a few.
sanitize: $(VENV)/.built
	PYTHONPATH=tests $(BIN)/python -m cpu_alone tsan
	FUSED_RESNET_CUDA=0 FUSED_RESNET_SANITIZE=address,undefined $(BIN)/pip install --quiet --no-deps --upgrade --target build/sanitize .
	PYTHONPATH=build/sanitize LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 FUSED_RESNET_KEEP_MEMORY=0 $(BIN)/pytest $(SANITIZED_TESTS)

# The CUDA kernels, executed on the CPU, under the same two and ThreadSanitizer: the op suite but for gradcheck, opcheck
# and compile, and the fused convolution's tests, five processor minutes, shown as they go. `make test` does so too.
sanitize-cuda: $(VENV)/.built
	PYTHONPATH=tests $(BIN)/python -m cuda_on_cpu.sanitized asan tsan

# The CPU kernels as NEON code, on an emulated processor: g++-aarch64-linux-gnu and qemu-user-static.
neon: $(VENV)/.built
	PYTHONPATH=tests $(BIN)/python -m cpu_alone neon

# For whoever has a GPU: at most ten minutes, and leaves gpu-check.json and gpu-check.md.
gpu-check: $(VENV)/.built
	$(BIN)/python benchmarks/gpu_check.py

# Every Triton kernel and tile, compiled for GPUs that are not here, against tests/triton_gate/budget.json.
triton-gate: $(VENV)/.built
	PYTHONPATH=tests $(BIN)/python -m triton_gate

# The pictures in docs/images that the tool draws: a profile of ResNet-50 (two minutes), and the results' page.
pictures: $(VENV)/.built
	PYTHONPATH=tests $(BIN)/python -m support.pictures

# The documents as a site, in build/site.
docs: $(VENV)/.built
	$(BIN)/mkdocs build --strict --site-dir build/site

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:
	rm -rf build dist *.egg-info fused_resnet/*.so $(VENV)

# An editable install; again whenever a source of the native module or the list of dependencies changes.
$(VENV)/.built: $(SOURCES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .[dev]
	touch $@
