"""Makes the PrometheusRule of ml_rules.yml: ``python k8s/prometheus_rule.py``, whenever the rules have changed."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
RULES = HERE.parent / "ml_rules.yml"
TARGET = HERE / "components/monitoring/prometheus-rule.yaml"

HEAD = """\
# Made of ml_rules.yml by k8s/prometheus_rule.py.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: mlflow-live
  labels:
    app.kubernetes.io/name: mlflow-live
    app.kubernetes.io/instance: mlflow-live
    app.kubernetes.io/component: api
    app.kubernetes.io/part-of: mlflow-live
    app.kubernetes.io/managed-by: kustomize
spec:
"""


def made(rules: str) -> str:
    """The object's YAML text. ``rules``: the text of ml_rules.yml, with its one key ``groups``."""
    _, key, groups = rules.partition("\ngroups:\n")
    lines = (key.strip() + "\n" + groups).splitlines()
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in lines)


if __name__ == "__main__":
    TARGET.write_text(made(RULES.read_text(encoding="utf-8")), encoding="utf-8")
