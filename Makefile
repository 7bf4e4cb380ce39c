# Plain `make` lists the targets. Works with the make of macOS (GNU 3.81).

PYTHON ?= python3

DATA := $(or $(XDG_DATA_HOME),$(HOME)/.local/share)/musicgen-mlx
VENV := $(DATA)/venv
BIN  := $(HOME)/.local/bin
COMMANDS := musicgen-mlx audiogen-mlx musicgen-mlx-convert musicgen-mlx-bench musicgen-mlx-doctor \
  musicgen-mlx-serve musicgen-mlx-train

.PHONY: help demo serve train-demo gallery train-lora install uninstall test native native-wheel sanitize lint fuzz \
  parity soak python

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# A virtual environment of its own works where the system's Python takes no packages (PEP 668).
install: python ## install the commands for this user
	@for command in $(COMMANDS); do link="$(BIN)/$$command"; \
	  if [ -e "$$link" ] || [ -L "$$link" ]; then \
	    [ "$$(readlink "$$link")" = "$(VENV)/bin/$$command" ] || { \
	      echo "$$link exists and is not from here; move it away, then run make install again" >&2; exit 1; }; \
	  fi; \
	done
	@if [ -e "$(VENV)" ] && [ ! -e "$(VENV)/pyvenv.cfg" ]; then \
	  echo "$(VENV) exists and is not from here; move it away, then run make install again" >&2; exit 1; \
	fi
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv --clear "$(VENV)"
	@"$(VENV)/bin/python" -m pip install --quiet '.[plot,play,tags,formats,serve]'
	@native/build.sh "$(VENV)/bin/python"
	@mkdir -p "$(BIN)"
	@for command in $(COMMANDS); do ln -sfn "$(VENV)/bin/$$command" "$(BIN)/$$command"; done
	@echo "Installed $$("$(BIN)/musicgen-mlx" --version) into $(BIN): $(COMMANDS)"
	@case ":$$PATH:" in *":$(BIN):"*) ;; *) \
	  echo "$(BIN) is not on your PATH; add this line to your shell's profile:"; \
	  echo '  export PATH="$(BIN):$$PATH"' ;; \
	esac

uninstall: ## remove what make install installed
	@for command in $(COMMANDS); do link="$(BIN)/$$command"; \
	  if [ "$$(readlink "$$link")" = "$(VENV)/bin/$$command" ]; then \
	    rm "$$link" && echo "Removed $$link"; \
	  else \
	    echo "No command of ours at $$link"; \
	  fi; \
	done
	@if [ -e "$(VENV)/pyvenv.cfg" ]; then \
	  rm -rf "$(VENV)" && echo "Removed $(VENV)"; \
	else \
	  echo "Nothing installed in $(VENV)"; \
	fi
	@rmdir "$(DATA)" 2>/dev/null || true

# The demo model comes with the package; make demo needs the package index, and that only once.
PROMPT = a chill lo-fi beat with vinyl crackle and soft piano

demo: .venv-demo/native ## music from the demo model: demo.wav, demo.png
	@.venv-demo/bin/musicgen-mlx "$(PROMPT)" -m demo -d 10 -o demo.wav --plot demo.png --no-open > /dev/null
	@echo 'Made 10 s of "$(PROMPT)" with the demo model: demo.wav'
	@echo 'Plotted its waveform and mel spectrogram: demo.png'
	@echo 'With a released model (about 2 GB to download): make install, then musicgen-mlx "$(PROMPT)"'

serve: .venv-demo/native ## the page and the server, with the demo model
	@.venv-demo/bin/musicgen-mlx-serve -m demo

test: .venv/installed ## run the tests
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not alone"
	.venv/bin/python -m pytest -m alone

# Each step continues from its checkpoint in training/work; hours.
train-demo: .venv-parity/installed ## train the next demo model: songs, codec, text, language model, evaluation
	cd training && ../.venv-parity/bin/python render_songs.py
	cd training && ../.venv-parity/bin/python train_codec.py
	cd training && ../.venv-parity/bin/python encode.py
	cd training && ../.venv-parity/bin/python text_tokenizer.py
	cd training && ../.venv-parity/bin/python text_encoder.py
	cd training && ../.venv-parity/bin/python train_lm.py
	cd training && ../.venv-parity/bin/python write_checkpoint.py --out work/model
	cd training && ../.venv-parity/bin/python evaluate_songs.py --model work/model

gallery: .venv-parity/installed ## a clip of each style by the demo model: docs/GALLERY.md
	cd training && ../.venv-parity/bin/python gallery.py

# One thread: this model's matrices are so small that threads mostly wait for each other.
train-lora: .venv-parity/installed ## teach the demo model an instrument that it doesn't know, and evaluate it
	cd training && OPENBLAS_NUM_THREADS=1 ../.venv-parity/bin/python train_adapter.py
	cd training && ../.venv-parity/bin/python evaluate_adapter.py

# Where it is built the tests use it.
native: .venv/installed ## build the native extension for Linux CPUs into the development environment
	@native/build.sh .venv/bin/python

native-wheel: .venv/installed ## build a wheel of the native extension for this Python and processor into dist
	@native/wheel.sh .venv/bin/python dist

sanitize: .venv/installed ## run the native kernels under the address and thread sanitizers
	@.venv/bin/python -m pip install --quiet 'cmake>=3.25' ninja
	@for sanitizer in address,undefined thread; do \
	  .venv/bin/cmake -G Ninja -S native -B ".venv/sanitize-$$sanitizer" -DMUSICGEN_SANITIZER_TEST=ON \
	    -DCMAKE_MAKE_PROGRAM="$(CURDIR)/.venv/bin/ninja" -DCMAKE_BUILD_TYPE=None \
	    -DCMAKE_CXX_FLAGS="-g -fsanitize=$$sanitizer -fno-sanitize-recover=all" > /dev/null && \
	  .venv/bin/cmake --build ".venv/sanitize-$$sanitizer" > /dev/null && \
	  echo "$$sanitizer:" && ".venv/sanitize-$$sanitizer/kernel_test" || exit 1; \
	done

lint: .venv/installed ## check style, types, imports and workflows
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo --no-cache
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/zizmor --offline --quiet --no-progress .github

# At once: about four minutes on 2 cores.
fuzz: .venv/installed ## read damaged and hostile checkpoints, audio, lists and requests
	@.venv/bin/python tests/fuzz_torch_pickle.py --runs 80000 & torch=$$!; \
	.venv/bin/python tests/fuzz_checkpoints.py --runs 55000 && \
	.venv/bin/python tests/fuzz_inputs.py --runs 10000; others=$$?; \
	wait $$torch && exit $$others

# Two and a half hours; see docs/RELIABILITY.md.
soak: .venv/installed ## ten thousand generations, an hour of server load, kills, and hundreds of clients
	@.venv/bin/python -m tests.soak
	@.venv/bin/python -m tests.kills
	@.venv/bin/python -m tests.client_load

parity: .venv-parity/installed ## compare with PyTorch (downloads torch and transformers)
	.venv-parity/bin/python -m pytest -n auto --maxprocesses 2 --dist loadfile tests/parity

# With the native extension where it can be built; a failure is tried again when its sources have changed. Of its
# own, so that it doesn't bring the extension into the tests' environment.
.venv-demo/native: .venv-demo/installed $(wildcard native/src/* native/CMakeLists.txt native/pyproject.toml)
	@native/build.sh $(@D)/bin/python
	@if command -v "$${CXX:-c++}" > /dev/null; then touch $@; fi

.venv-demo/installed: EXTRAS = plot,serve
.venv/installed: EXTRAS = test,lint,fuzz,plot
.venv-parity/installed: EXTRAS = test,parity,plot,training
.venv-demo/installed .venv/installed .venv-parity/installed: pyproject.toml | python
	@echo "Setting up $(@D) (about a minute, once) ..."
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "$(PYTHON) is missing or older than Python 3.10; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
