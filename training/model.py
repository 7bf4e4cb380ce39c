"""The demo model, untrained, as a transformers model."""

from __future__ import annotations

import torch
from codec import CODEBOOKS, CODES, make_encodec
from text_encoder import text_config
from transformers import MusicgenConfig, MusicgenForConditionalGeneration
from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

# Of the codes' embeddings at first: positions of amplitude 1 are added to them, where the usual 0.02 drowns.
EMBEDDING_STD = 0.3


def make_model(vocabulary: int) -> MusicgenForConditionalGeneration:
    decoder = MusicgenDecoderConfig(
        vocab_size=CODES,
        num_codebooks=CODEBOOKS,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        ffn_dim=832,
        dropout=0.0,
        pad_token_id=CODES,
        bos_token_id=CODES,
    )
    config = MusicgenConfig(
        text_encoder=text_config(vocabulary).to_dict(),
        audio_encoder=make_encodec().config.to_dict(),
        decoder=decoder.to_dict(),
    )
    model = MusicgenForConditionalGeneration(config)
    for table in model.decoder.model.decoder.embed_tokens:
        torch.nn.init.normal_(table.weight, std=EMBEDDING_STD)
    return model
