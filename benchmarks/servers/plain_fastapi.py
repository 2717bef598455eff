"""A model behind FastAPI as people write it: ``uvicorn plain_fastapi:app``."""

import os
import warnings

import joblib
import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

warnings.filterwarnings("ignore", message="X does not have valid feature names")
app = FastAPI()
model = joblib.load(os.environ["MODEL_FILE"])


class Rows(BaseModel):
    rows: list[list[float]]


class Predictions(BaseModel):
    labels: list[int]
    probabilities: list[list[float]]


@app.post("/predict")
def predict(body: Rows) -> Predictions:
    probabilities = model.predict_proba(np.array(body.rows))
    labels = model.classes_[probabilities.argmax(axis=1)]
    return Predictions(labels=labels.tolist(), probabilities=probabilities.tolist())
