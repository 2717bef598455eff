# Two images from one file:
#
#   docker build --target serve  -t mlflow-live .           the service, without pandas and scikit-learn
#   docker build --target mlflow -t mlflow-live-mlflow .    MLflow's tracking server, and the training command
#
# NATIVE=1 makes a serve image that also runs versions that were not compiled (native scikit-learn, pyfunc).

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG NATIVE=0

FROM ${PYTHON_IMAGE} AS python
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    HOME=/tmp
RUN groupadd --gid 10001 app \
    && useradd --uid 10001 --gid app --no-create-home --home-dir /tmp --shell /usr/sbin/nologin app \
    && install --directory --owner=app --group=app /state
WORKDIR /app

# Packages: every one of them is a wheel, so nothing is compiled. pip stays behind.
FROM python AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv

FROM packages AS packages-serve
COPY requirements-serve.txt ./
RUN pip install --require-hashes --only-binary=:all: -r requirements-serve.txt && pip uninstall -q -y setuptools pip

FROM packages AS packages-train
COPY requirements-train.txt ./
RUN pip install --require-hashes --only-binary=:all: -r requirements-train.txt && pip uninstall -q -y setuptools pip

FROM packages-serve AS packages-native-0
FROM packages-train AS packages-native-1
# hadolint ignore=DL3006 # one of the two stages above, which has no tag
FROM packages-native-${NATIVE} AS packages-chosen

# What training does not import is left out, so that the layer below is trained anew only when something else changed.
FROM python AS training-code
COPY serving serving
# hadolint ignore=DL3003 # for this one command only
RUN cd serving && rm -r ledger openapi protocols tracing agent.py answers.py body.py exchange.py exposition.py follower.py gunicorn_conf.py \
    lane.py metrics.py observer.py ops.py pages.py payload.py service.py store.py telemetry.py web.py worker.py

# The version that serves where there is no registry yet.
FROM python AS model
COPY --from=packages-train /opt/venv /opt/venv
COPY train_model.py ./
COPY training training
COPY --from=training-code /app/serving serving
RUN MLFLOW_TRACKING_URI=sqlite:////tmp/mlflow.db MODEL_DIR=/app/models python train_model.py iris \
    && chmod -R a+rX models

FROM python AS mlflow
COPY --from=packages-train /opt/venv /opt/venv
COPY LICENSE train_model.py ./
COPY docker/*.py docker/
COPY serving serving
COPY training training
ARG VERSION=0 GIT_COMMIT=unknown
ENV BUILD_VERSION=${VERSION} BUILD_COMMIT=${GIT_COMMIT} MODEL_DIR=/tmp/models STATE_DIR=/tmp/state
USER 10001:10001
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "docker/healthy.py", "http://127.0.0.1:5000/health"]
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
LABEL org.opencontainers.image.title="mlflow-live-mlflow" \
      org.opencontainers.image.description="MLflow's tracking server, and the training command of mlflow-live" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_COMMIT}"

FROM python AS serve
COPY --from=packages-chosen /opt/venv /opt/venv
COPY --from=model /app/models models
COPY LICENSE app.py ./
COPY docker/healthy.py docker/
COPY serving serving
ARG VERSION=0 GIT_COMMIT=unknown
ENV BUILD_VERSION=${VERSION} BUILD_COMMIT=${GIT_COMMIT} \
    BIND_ADDRESS=0.0.0.0 METRICS_PORT=9100 LOG_FORMAT=json STATE_DIR=/state
USER 10001:10001
EXPOSE 5000 9100
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "docker/healthy.py", "http://127.0.0.1:5000/readyz"]
CMD ["python", "app.py"]
LABEL org.opencontainers.image.title="mlflow-live" \
      org.opencontainers.image.description="An MLflow registry alias, made a live, fast, watched and reversible endpoint" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_COMMIT}"
