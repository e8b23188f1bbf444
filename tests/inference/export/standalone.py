"""Another program: it classifies a video from model.onnx and model.json, without PyTorch."""

import json
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnxruntime


def classify(folder: Path, video: Path) -> tuple[str, np.ndarray]:
    """Return the class of a video and the probabilities of all."""
    about = json.loads((folder / "model.json").read_text())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    pictures, times = decoded(video, about["short_px"])
    clips = [
        clip for row in chosen(times, about["sampling"]) for clip in squares(pictures, row, about)
    ]
    clip = np.stack([numbers(one, about) for one in clips])
    (scores,) = session.run([about["output"]["name"]], {about["input"]["name"]: clip})
    powers = np.exp(scores - scores.max(1, keepdims=True))
    probabilities = (powers / powers.sum(1, keepdims=True)).mean(0)
    return about["classes"][int(probabilities.argmax())], probabilities


def decoded(video: Path, short_px: int) -> tuple[np.ndarray, np.ndarray]:
    pictures, times = [], []
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            short = min(frame.width, frame.height)
            width, height = (round(side * short_px / short) for side in (frame.width, frame.height))
            scaled = frame.reformat(width, height, "rgb24", interpolation="BILINEAR")
            pictures.append(np.rot90(scaled.to_ndarray(), round(frame.rotation / 90)))
            times.append(frame.time)
    return np.stack(pictures), np.array(times) - times[0]


def chosen(times: np.ndarray, sampling: dict[str, Any]) -> list[list[int]]:
    """Return the frames of each view."""
    shown = list(range(len(times)))
    if sampling["fps"] is not None and len(times) > 1:
        fps = sampling["fps"]
        count = max(1, round((times[-1] + np.diff(times).mean()) * fps))
        shown = [int(np.sum(times <= i / fps + 1e-6)) - 1 for i in range(count)]
    n, frames, views = len(shown), sampling["num_frames"], sampling["views"]
    rows = []
    for v in range(views):
        if sampling["kind"] == "uniform":
            row = [
                min(n - 1, math.floor((k + (v + 0.5) / views) * n / frames)) for k in range(frames)
            ]
        else:
            share = 0.5 if views == 1 else v / (views - 1)
            stride = sampling["stride"]
            start = math.floor(max(0, n - ((frames - 1) * stride + 1)) * share)
            row = [start + stride * k for k in range(frames)]
            row = [i % n if sampling["pad"] == "loop" else min(i, n - 1) for i in row]
        rows.append([shown[i] for i in row])
    return rows


def squares(pictures: np.ndarray, row: list[int], about: dict[str, Any]) -> list[np.ndarray]:
    size = about["size_px"]
    down, right = pictures.shape[1] - size, pictures.shape[2] - size
    corners = [(down // 2, right // 2)]
    if about["crops"] == 3 and down > right:
        corners = [(top, right // 2) for top in (0, down // 2, down)]
    elif about["crops"] == 3:
        corners = [(down // 2, left) for left in (0, right // 2, right)]
    return [pictures[row][:, top : top + size, left : left + size] for top, left in corners]


def numbers(frames: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    clip = (frames / 255 - np.array(about["mean"])) / np.array(about["std"])
    if about["modality"] == "difference":
        clip = np.concatenate([np.zeros_like(clip[:1]), np.diff(clip, axis=0)])
    return clip.transpose(3, 0, 1, 2).astype(np.float32)
