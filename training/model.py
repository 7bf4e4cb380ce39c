"""The demo model, untrained, as a transformers model."""

from __future__ import annotations

from codec import CODES, make_encodec
from transformers import MusicgenConfig, MusicgenForConditionalGeneration, T5Config
from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig


def make_model(vocabulary: int, dropout: float = 0.0) -> MusicgenForConditionalGeneration:
    text = T5Config(
        vocab_size=vocabulary,
        d_model=96,
        d_kv=24,
        d_ff=192,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.05,
        is_encoder_decoder=False,
        use_cache=False,
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=CODES,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        ffn_dim=768,
        dropout=dropout,
        pad_token_id=CODES,
        bos_token_id=CODES,
    )
    config = MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=make_encodec().config.to_dict(), decoder=decoder.to_dict()
    )
    return MusicgenForConditionalGeneration(config)
