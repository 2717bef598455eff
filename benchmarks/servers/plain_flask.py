"""A model behind Flask as people write it: ``gunicorn --threads 4 plain_flask:app``."""

import os
import warnings

import joblib
import numpy as np
from flask import Flask, jsonify, request

warnings.filterwarnings("ignore", message="X does not have valid feature names")
app = Flask(__name__)
model = joblib.load(os.environ["MODEL_FILE"])


@app.post("/predict")
def predict():
    probabilities = model.predict_proba(np.array(request.get_json()["rows"]))
    labels = model.classes_[probabilities.argmax(axis=1)]
    return jsonify(labels=labels.tolist(), probabilities=probabilities.tolist())
