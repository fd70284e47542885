"""Small networks of every shape that techniques and engines must treat rightly; inputs are [n, 3, 8, 8] or [n, 12]."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics, scales and shifts of their own, so that nothing is right by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    if tensor is not None:
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                for tensor in (module.bias, module.running_mean):
                    if tensor is not None:
                        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model.eval()


def images(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def rows(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def conv_bn(inside: int, outside: int, **settings: Any) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, 3, padding=1, bias=False, **settings), nn.BatchNorm2d(outside)]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*conv_bn(3, 16), nn.ReLU(), *conv_bn(16, 24), nn.ReLU())
        self.head = nn.Linear(24 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.avg_pool2d(self.features(x), 2).flatten(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 16), nn.ReLU())
        self.inner = nn.Sequential(*conv_bn(16, 24), nn.ReLU())
        self.outer = nn.Sequential(*conv_bn(24, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.outer(self.inner(x))).relu().mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(*conv_bn(3, 16), nn.ReLU())
        self.depth = nn.Sequential(*conv_bn(16, 16, groups=16), nn.ReLU())
        self.project = nn.Sequential(*conv_bn(16, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.project(self.depth(self.expand(x))).mean((2, 3)))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(*conv_bn(3, 16), nn.ReLU())
        self.right = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
        self.joint = nn.Sequential(*conv_bn(24, 16), nn.ReLU())
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.joint(torch.cat([self.left(x), self.right(x)], 1)).mean((2, 3)))


class SharedConv(nn.Module):
    """One convolution, called twice, once before a batch norm and once bare."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_bn(3, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.norm(self.conv(x)).relu() + self.conv(0.5 * x).relu()).mean((2, 3)))


class TwoNorms(nn.Module):
    """One convolution, called twice, each time before another batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first = conv_bn(3, 16)
        self.second = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.first(self.conv(x)).relu() + self.second(self.conv(-x)).relu()).mean((2, 3)))


class SharedRelu(nn.Module):
    """One ReLU for all, as residual networks are often written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv_bn(3, 16)
        self.conv2, self.norm2 = conv_bn(16, 16)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(x + self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


class ReadTwice(nn.Module):
    """What a convolution makes is read by its batch norm and, by a mere `+`, once more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_bn(3, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((self.norm(y).relu() + y).mean((2, 3)))


class InPlace(nn.Module):
    """Between convolution and batch norm something changes the very tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_bn(3, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.relu_()
        return self.head(self.norm(y).mean((2, 3)))


class Returned(nn.Module):
    """What a convolution makes is also an output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_bn(3, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return self.head(self.norm(y).relu().mean((2, 3))), y


class PreActivation(nn.Module):
    """Batch norms that stand before convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 16, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.norm(x).relu()).mean((2, 3)))


class Position(nn.Module):
    """A leaf without inputs; layers called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(3, 8, 8))
        self.layers = nn.ModuleDict({"conv": nn.Conv2d(3, 16, 3), "norm": nn.BatchNorm2d(16)})
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers["norm"](input=self.layers["conv"](input=x + self.offset))
        return self.head(input=y.relu().mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class Attention(nn.Module):
    """q, k and v are fed by one tensor; [n, 12] is read as 3 tokens of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 3, 4)
        mixed = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.head(self.o(mixed).mean(1))


class Keywords(nn.Module):
    """Takes keyword arguments, returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp()

    def forward(self, values: Tensor, mask: Tensor) -> dict[str, Tensor]:
        y = self.body(values * mask)
        return {"logits": y, "norm": y.norm(dim=1)}


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Wrapped(nn.Module):
    """Returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp()

    def forward(self, x: Tensor) -> Output:
        hidden = self.body.layers(x)
        return Output(logits=self.body.head(hidden), hidden=hidden)


class Bottleneck(nn.Module):
    """x + f(x), channels as they were."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*conv_bn(channels, 24), nn.ReLU(), *conv_bn(24, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Stacked(nn.Module):
    """A stack of residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 16), nn.ReLU())
        self.blocks = nn.Sequential(*(Bottleneck(16) for _ in range(4)))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).relu().mean((2, 3)))


class FusedAttention(nn.Module):
    """Heads out of one qkv layer, as vision transformers have them."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, features // heads
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, self.num_heads * self.head_dim))


class VitBlock(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.attn = FusedAttention(features, 4)
        self.mlp = nn.Sequential(nn.Linear(features, 64), nn.GELU(), nn.Linear(64, features))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Patches of 2 x 2, a learnt position, blocks, the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, 16, 32))
        self.blocks = nn.ModuleList(VitBlock(32) for _ in range(3))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Bert(nn.Module):
    """Hugging Face's BERT, tiny, with a pooled classifier."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=16,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(32, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(found.mean(1))


class Lm(nn.Module):
    """Hugging Face's Llama, tiny, with grouped-query attention, behind a wrapper."""

    def __init__(self, kind: str = "Llama", layers: int = 3, **changes: Any) -> None:
        super().__init__()
        import transformers

        settings = {
            "vocab_size": 300,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
            **changes,
        }
        config = getattr(transformers, f"{kind}Config")(**settings)
        self.lm = getattr(transformers, f"{kind}ForCausalLM")(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm(input_ids=input_ids, use_cache=False).logits


def tokens(count: int = 2, length: int = 8, vocabulary: int = 60, seed: int = 1) -> Tensor:
    return torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))
