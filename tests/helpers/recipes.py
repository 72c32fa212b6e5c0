"""Where the repository is, and a recipe that trains in seconds."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TINY_RECIPE = """
data: {rows: 96, folds: 2, seed: 1}
teachers:
  llama: &teacher
    backbone:
      tiny: {family: llama, hidden_size: 64, intermediate_size: 64, layers: 2, heads: 4, kv_heads: 2,
             vocab_size: 400, pretrain_steps: 4}
    lora: {r: 4, alpha: 8}
    encode: {max_length: 192}
    train: {epochs: 2, lr: 1.0e-3, head_lr: 1.0e-2, rows_per_step: 8,
            log_steps: 1, checkpoint_steps: 3}
  gemma2:
    <<: *teacher
    backbone:
      tiny: {family: gemma2, hidden_size: 64, intermediate_size: 64, layers: 2, heads: 4, kv_heads: 2,
             vocab_size: 400, pretrain_steps: 4}
student:
  <<: *teacher
  backbone:
    tiny: {family: llama, hidden_size: 64, intermediate_size: 64, layers: 1, heads: 2, kv_heads: 1,
           vocab_size: 300, pretrain_steps: 4}
  distill: {weight: 0.6, temperature: 2.0}
"""
