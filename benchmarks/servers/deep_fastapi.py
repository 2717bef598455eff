"""A deep model behind FastAPI as people write it: ``uvicorn deep_fastapi:app`` with ``KIND`` and ``WEIGHTS``."""

import base64
import io
import os

import torch
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
torch.set_num_threads(1)  # all servers have one core; more threads would only be in each other's way
weights = os.environ["WEIGHTS"]


class Texts(BaseModel):
    texts: list[str]


class Picture(BaseModel):
    image: str


if os.environ["KIND"] == "minilm":
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(weights, device="cpu")

    @app.post("/predict")
    def embed(body: Texts) -> dict[str, list[list[float]]]:
        return {"vectors": encoder.encode(body.texts, normalize_embeddings=True, show_progress_bar=False).tolist()}

else:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(weights)
    model = AutoModelForImageClassification.from_pretrained(weights).eval()

    @app.post("/predict")
    def classify(body: Picture) -> dict[str, list[dict[str, float]]]:
        picture = Image.open(io.BytesIO(base64.b64decode(body.image))).convert("RGB")
        with torch.inference_mode():
            chances = model(**processor(picture, return_tensors="pt")).logits.softmax(dim=1)[0]
        best = chances.topk(5)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {"top_k": [{"class_id": place, "confidence": chance} for place, chance in pairs]}
