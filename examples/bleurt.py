"""BLEURT of a file of predictions, with an environment of its own, since bleurt-pytorch needs transformers 4:

    python -m venv bleurt && bleurt/bin/pip install torch "transformers<5" sentencepiece bleurt-pytorch
    bleurt/bin/python examples/bleurt.py BLEURT-20 runs/mine/test_predictions.jsonl

BLEURT-20 is a folder with the files of huggingface.co/lucadiliello/BLEURT-20. The mean over the clips, times 100, is
written.
"""

import json
import sys

import torch
from bleurt_pytorch import BleurtForSequenceClassification, BleurtTokenizer

folder, predictions = sys.argv[1:]
model = BleurtForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
tokenizer = BleurtTokenizer.from_pretrained(folder, local_files_only=True)
with open(predictions, encoding="utf-8") as file:
    clips = [json.loads(line) for line in file]
scores: list[float] = []
for start in range(0, len(clips), 32):
    batch = clips[start : start + 32]
    references, hypotheses = ([clip[key] for clip in batch] for key in ("reference", "hypothesis"))
    with torch.no_grad():
        inputs = tokenizer(references, hypotheses, padding=True, truncation=True, max_length=512, return_tensors="pt")
        scores += model(**inputs).logits.flatten().tolist()
sys.stdout.write(f"BLEURT {100 * sum(scores) / len(scores):.2f} of {len(scores)} clips\n")
