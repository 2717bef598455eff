"""A model behind BentoML, after its own examples: ``bentoml serve bento:Classifier``."""

import os
import warnings

import bentoml
import joblib
import numpy as np


@bentoml.service
class Classifier:
    def __init__(self) -> None:
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        self.model = joblib.load(os.environ["MODEL_FILE"])

    @bentoml.api
    def predict(self, rows: np.ndarray) -> dict:
        probabilities = self.model.predict_proba(rows)
        labels = self.model.classes_[probabilities.argmax(axis=1)]
        return {"labels": labels.tolist(), "probabilities": probabilities.tolist()}
