"""A model behind LitServe, after its own examples: ``python lit.py PORT``."""

import os
import sys
import warnings

import joblib
import litserve
import numpy as np


class Predict(litserve.LitAPI):
    def setup(self, device):  # noqa: ARG002 - LitServe names it
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        self.model = joblib.load(os.environ["MODEL_FILE"])

    def decode_request(self, request):
        return np.array(request["rows"])

    def predict(self, rows):
        return self.model.predict_proba(rows)

    def encode_response(self, probabilities):
        labels = self.model.classes_[probabilities.argmax(axis=1)]
        return {"labels": labels.tolist(), "probabilities": probabilities.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Predict(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False)
