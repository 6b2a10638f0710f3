"""Where vectors come from."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator

from daemon.settings.base import LOCAL, PositiveFloat, PositiveInt, Settings


class EmbeddingSettings(Settings):
    provider: Literal["triton", "openai"] = Field("triton", description="Where embeddings come from.")
    url: str = Field(LOCAL, description="Triton's gRPC `host:port`, or `local`; for openai the base URL.")
    model: str = Field("text_embedder", description="The model's name there.")
    api_key: SecretStr = Field(SecretStr(""), description="openai: the bearer token; empty: none is sent.")
    dimension: PositiveInt = Field(384, description="Length of a vector; a model that differs is refused.")
    timeout_s: PositiveFloat = Field(10.0, description="Longest wait for one request.")
    requests_max: PositiveInt = Field(4, description="Requests in flight at once.")
    batch_texts_max: PositiveInt = Field(500, description="Texts in one request.")
    request_tokens_max: PositiveInt = Field(
        100_000, description="openai: tokens in one request; more are sent as several."
    )
    text_tokens_max: Annotated[int, Field(ge=0)] = Field(
        8_191,
        description="openai: a longer text is cut, as a model on Triton does itself; 0: it is sent whole.",
    )
    tokenizer: str = Field(
        "",
        description="openai: path of the model's tokenizer.json, to count and cut exactly; "
        "empty: 2 bytes count as a token, which cuts prose at half of what the model takes.",
    )
    request_dimension: bool = Field(
        False, description="openai: ask the model to shorten its vectors to `dimension`; not every model can."
    )
    document_prompt: str = Field("", description="openai: put before each text, as `passage: ` for E5.")
    query_prompt: str = Field("", description="openai: put before what is searched for, as `query: ` for E5.")

    @model_validator(mode="after")
    def _provider(self) -> Self:
        if self.provider == "triton":
            if self.document_prompt or self.query_prompt:
                raise ValueError(
                    "document_prompt and query_prompt are for openai; Triton's model has its own"
                )
            return self
        if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", self.url):
            raise ValueError(
                "provider openai needs `url`: the base of the API, as https://api.openai.com/v1, without a key in it"
            )
        if "model" not in self.model_fields_set or not self.model.strip():
            raise ValueError("provider openai needs `model`: its name there, as text-embedding-3-small")
        if not re.fullmatch(r"[!-~]*", self.api_key.get_secret_value()):
            raise ValueError("api_key has a space, a line break or another character that no key has")
        return self
