"""The demo model, untrained, as a transformers model."""

from __future__ import annotations

from codec import CODEBOOKS, CODES, make_encodec
from text_encoder import text_config
from transformers import MusicgenConfig, MusicgenForConditionalGeneration
from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig


def make_model(vocabulary: int, dropout: float = 0.0) -> MusicgenForConditionalGeneration:
    decoder = MusicgenDecoderConfig(
        vocab_size=CODES,
        num_codebooks=CODEBOOKS,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        ffn_dim=1024,
        dropout=dropout,
        pad_token_id=CODES,
        bos_token_id=CODES,
    )
    config = MusicgenConfig(
        text_encoder=text_config(vocabulary).to_dict(),
        audio_encoder=make_encodec().config.to_dict(),
        decoder=decoder.to_dict(),
    )
    return MusicgenForConditionalGeneration(config)
