"""Problems made by hand and at random, to try the solvers on."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from lowtide.solvers.problem.problem import EncodingOption, Op, Problem, Value

MEBIBYTE = 2**20


@dataclass
class Draft:
    """A problem under construction, operation by operation."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    forward_length: int = 0

    def value(self, name: str, size_bytes: int, held: bool = False, resident: bool = False) -> int:
        self.values.append(Value(name, int(size_bytes), held, resident))
        return len(self.values) - 1

    def op(self, name: str, reads, sizes, seconds: float, block: int, scratch: int = 0, held=(), **flags) -> list[int]:
        """Add an operation that makes values of these sizes; `held` are positions of held ones."""
        makes = [self.value(f"{name}.{i}" if len(sizes) > 1 else name, s, held=i in held) for i, s in enumerate(sizes)]
        working_bytes = int(sum(sizes)) + scratch
        kind = flags.pop("kind", name.split(".")[-1])
        op = Op(name, tuple(reads), tuple(makes), seconds, working_bytes, block, kind=kind, **flags)
        self.ops.append(op)
        return makes

    def problem(self, block_classes, **fields) -> Problem:
        resident_bytes = sum(value.size_bytes for value in self.values if value.resident)
        return Problem(
            tuple(self.ops),
            tuple(self.values),
            self.forward_length,
            tuple(block_classes),
            resident_bytes,
            **fields,
        )


def llama(
    layers: int = 12,
    width: int = 128,
    tokens: int = 1024,
    length: int = 256,
    hidden: int = 512,
    vocabulary: int = 512,
) -> Problem:
    """Return Llama-style blocks with float32 bytes and matmul FLOPs as seconds (a little for other operations).

    The first block is the embedding, the last one the final norm, the head and the loss. Gradients of
    parameters are made where `.grad` already exists, so they are freed at once.
    """
    draft = Draft()
    x, f, row = tokens * width * 4, tokens * hidden * 4, tokens * 4
    cheap = 1e-9

    def matmul(a: int, b: int) -> float:
        return 2.0 * tokens * a * b * 1e-9

    attention = 4.0 * tokens * length * width * 1e-9
    weight = draft.value("weights", 0, resident=True)
    stream = draft.op("embed.embedding", [weight], [x], cheap, 0)[0]
    saved = []
    for layer in range(layers):
        block, at = layer + 1, f"layers.{layer}"

        def op(name, reads, sizes, seconds=cheap, block=block, at=at, **flags):
            return draft.op(f"{at}.{name}", reads, sizes, seconds, block, **flags)

        def norm(name, source, op=op):
            square = op(f"{name}.pow", [source], [x])[0]
            mean = op(f"{name}.mean", [square], [row])[0]
            rsqrt = op(f"{name}.rsqrt", [mean], [row])[0]
            normal = op(f"{name}.mul", [source, rsqrt], [x])[0]
            return rsqrt, normal, op(f"{name}.weighted", [normal, weight], [x])[0]

        rsqrt_1, normal_1, scaled_1 = norm("norm1", stream)
        q, k, v = (
            op(f"{n}.mm", [scaled_1, weight], [x], matmul(width, width), compute_intensive=True)[0] for n in "qkv"
        )
        q_turned = op("rope.q", [q], [x])[0]
        k_turned = op("rope.k", [k], [x])[0]
        out, sums = op("sdpa", [q_turned, k_turned, v], [x, row * 4], attention, compute_intensive=True)
        projected = op("o.mm", [out, weight], [x], matmul(width, width), compute_intensive=True)[0]
        middle = op("add1", [stream, projected], [x])[0]
        rsqrt_2, normal_2, scaled_2 = norm("norm2", middle)
        gate = op("gate.mm", [scaled_2, weight], [f], matmul(width, hidden), compute_intensive=True)[0]
        up = op("up.mm", [scaled_2, weight], [f], matmul(width, hidden), compute_intensive=True)[0]
        silu = op("silu", [gate], [f])[0]
        product = op("mul", [silu, up], [f])[0]
        down = op("down.mm", [product, weight], [x], matmul(width, hidden), compute_intensive=True)[0]
        after = op("add2", [middle, down], [x])[0]
        attended = (stream, rsqrt_1, normal_1, scaled_1, q_turned, k_turned, v, out, sums)
        saved.append((*attended, middle, rsqrt_2, normal_2, scaled_2, gate, up, silu, product))
        stream = after
    last = layers + 1
    logits = draft.op("head.mm", [stream, weight], [tokens * vocabulary * 4], matmul(width, vocabulary), last)[0]
    softmax = draft.op("head.log_softmax", [logits], [tokens * vocabulary * 4], cheap, last)[0]
    draft.op("head.loss", [softmax], [4], cheap, last, held=(0,))
    draft.forward_length = len(draft.ops)
    tangent = draft.value("tangent", 4, resident=True)

    def backward(name, reads, sizes, seconds=cheap, block=last):
        return draft.op(name, reads, sizes, seconds, block, repeatable=False)

    def backward_matmul(name, gradient, source, inner, outer, block):
        """Add the gradients of a product's weight (added into .grad at once) and of its input."""
        backward(f"{name}.weight", [gradient, source], [inner * outer * 4], matmul(inner, outer), block)
        return backward(f"{name}.input", [gradient, weight], [tokens * inner * 4], matmul(inner, outer), block)[0]

    gradient = backward("head.loss.backward", [softmax, tangent], [tokens * vocabulary * 4])[0]
    gradient = backward_matmul("head.mm.backward", gradient, stream, width, vocabulary, last)
    for layer in reversed(range(layers)):
        block, at = layer + 1, f"layers.{layer}.backward"
        stream, rsqrt_1, normal_1, scaled_1, q, k, v, out, sums = saved[layer][:9]
        middle, rsqrt_2, normal_2, scaled_2, gate, up, silu, product = saved[layer][9:]
        g_product = backward_matmul(f"{at}.down", gradient, product, hidden, width, block)
        g_up = backward(f"{at}.mul_up", [g_product, silu], [f], block=block)[0]
        g_silu = backward(f"{at}.mul_silu", [g_product, up], [f], block=block)[0]
        g_gate = backward(f"{at}.silu", [g_silu, gate], [f], block=block)[0]
        g_1 = backward_matmul(f"{at}.gate", g_gate, scaled_2, width, hidden, block)
        g_2 = backward_matmul(f"{at}.up", g_up, scaled_2, width, hidden, block)
        g_scaled = backward(f"{at}.add_norm2", [g_1, g_2], [x], block=block)[0]
        backward(f"{at}.norm2.weight", [g_scaled, normal_2], [width * 4], block=block)
        g_norm = backward(f"{at}.norm2.input", [g_scaled, weight, middle, rsqrt_2], [x], block=block)[0]
        gradient = backward(f"{at}.add_middle", [g_norm, gradient], [x], block=block)[0]
        g_out = backward_matmul(f"{at}.o", gradient, out, width, width, block)
        g_q, g_k, g_v = backward(f"{at}.sdpa", [g_out, q, k, v, out, sums], [x, x, x], 2 * attention, block)
        g_q = backward(f"{at}.rope.q", [g_q], [x], block=block)[0]
        g_k = backward(f"{at}.rope.k", [g_k], [x], block=block)[0]
        parts = [
            backward_matmul(f"{at}.{n}", g, scaled_1, width, width, block)
            for n, g in zip("qkv", (g_q, g_k, g_v), strict=True)
        ]
        g_scaled = backward(f"{at}.add_norm1", parts, [x], block=block)[0]
        backward(f"{at}.norm1.weight", [g_scaled, normal_1], [width * 4], block=block)
        g_norm = backward(f"{at}.norm1.input", [g_scaled, weight, stream, rsqrt_1], [x], block=block)[0]
        gradient = backward(f"{at}.add_stream", [g_norm, gradient], [x], block=block)[0]
    backward("embed.backward", [gradient], [4], block=0)
    return draft.problem([0, *[1] * layers, 2], name=f"llama{layers}")


def chain_of_blocks(seed: int, blocks: int = 3, width: int = 4, classes: int = 1, randomness: float = 0.2) -> Problem:
    """Return a random chain.

    Its forward blocks have side branches, several outputs, random and unrepeatable operations, and a value carried
    through all blocks. Its backward reads values of forward, and each other's gradients.
    """
    draw = random.Random(seed)
    draft = Draft()
    weight = draft.value("weight", 16, resident=True)
    carried = draft.op("carry", [weight], [draw.randint(1, 20)], 1.0, 0)[0]
    stream = draft.op("embed", [weight], [draw.randint(1, 20)], 1.0, 0)[0]
    seeds = [draw.random() for _ in range(classes)]
    block_classes = [0] + [1 + block % classes for block in range(blocks)]
    saved: list[list[int]] = [[stream]]
    for block in range(1, blocks + 1):
        same = random.Random(seeds[(block - 1) % classes])  # blocks of one class are equal
        pool = [stream]
        for index in range(width):
            reads = same.sample(range(len(pool)), min(len(pool), same.randint(1, 2)))
            reads = [pool[i] for i in reads] + [carried] * (same.random() < 0.3) + [weight] * (same.random() < 0.5)
            sizes = [same.randint(0, 30) for _ in range(same.choice((1, 1, 1, 2)))]
            kind = same.random()
            made = draft.op(
                f"block{block}.op{index}",
                reads,
                sizes,
                float(same.randint(0, 9)),
                block,
                scratch=same.randint(0, 8),
                random=kind < randomness,
                repeatable=not randomness < kind < randomness + 0.1,
                compute_intensive=same.random() < 0.4,
            )
            pool += made
        stream = draft.op(f"block{block}.out", [pool[0], pool[-1]], [same.randint(1, 20)], 1.0, block)[0]
        saved.append(pool)
    last = blocks + 1
    block_classes.append(classes + 1)
    draft.op("loss", [stream], [2], 1.0, last, held=(0,))
    draft.forward_length = len(draft.ops)
    gradient = draft.op("loss.backward", [stream], [draw.randint(1, 20)], 1.0, last, repeatable=False)[0]
    for block in range(blocks, -1, -1):
        same = random.Random(seeds[(block - 1) % classes] + 1 if block else 0.5)
        pool = saved[block]
        for index in range(1 if block == 0 else width):
            reads = same.sample(range(len(pool)), min(len(pool), same.randint(1, 3)))
            reads = [gradient] + [pool[i] for i in reads] + [carried] * (same.random() < 0.2)
            if same.random() < 0.3:
                helper = draft.op(f"back{block}.help{index}", reads[1:], [same.randint(1, 9)], 1.0, block)
                reads += helper
            gradient = draft.op(
                f"back{block}.op{index}",
                reads,
                [same.randint(1, 20), same.randint(0, 5)],
                float(same.randint(1, 9)),
                block,
                scratch=same.randint(0, 8),
                held=(1,),
                repeatable=False,
            )[0]
    return draft.problem(block_classes, state_bytes=3, name=f"chain{seed}")


def tiny(seed: int) -> Problem:
    """Return at most a dozen values in one or two blocks, for exhaustive search; no random operations."""
    draw = random.Random(seed)
    blocks = draw.choice((1, 2, 2))
    draft = Draft()
    source = draft.value("input", 4, resident=True)
    made = [source]
    saved: list[list[int]] = []
    for block in range(blocks):
        own = [made[-1]]
        for index in range(draw.randint(2, 4 - blocks // 2)):
            reads = draw.sample(own, min(len(own), draw.randint(1, 2)))
            sizes = [draw.randint(1, 12) for _ in range(draw.choice((1, 1, 1, 2)))]
            repeatable, scratch = draw.random() < 0.9, draw.choice((0, 0, 5))
            own += draft.op(
                f"op{block}.{index}", reads, sizes, draw.randint(0, 9), block, scratch, repeatable=repeatable
            )
        made += own[1:]
        saved.append(own)
    draft.op("loss", [made[-1]], [1], 1, blocks - 1, held=(0,))
    draft.forward_length = len(draft.ops)
    gradient = draft.op("back.loss", [made[-1]], [draw.randint(1, 6)], 1, blocks - 1, repeatable=False)[0]
    for block in reversed(range(blocks)):
        for index in range(draw.randint(1, 2)):
            reads = draw.sample(saved[block], min(len(saved[block]), draw.randint(1, 2)))
            if draw.random() < 0.2:
                reads += draft.op(f"help{block}.{index}", reads, [draw.randint(1, 4)], 1, block)
            size, held = draw.randint(1, 6), (0,) if draw.random() < 0.2 else ()
            reads += [gradient]
            seconds = draw.randint(1, 9)
            gradient = draft.op(f"back{block}.{index}", reads, [size], seconds, block, held=held, repeatable=False)[0]
    return draft.problem(range(blocks), name=f"tiny{seed}")


def with_changes(problem: Problem, seed: int, share: float = 0.7) -> Problem:
    """Return the problem in which a share of the operations make a changed copy of a value that they read."""
    draw = random.Random(seed)
    values, ops = list(problem.values), []
    for op in problem.ops:
        read = [value for value in op.reads if not values[value].resident and not values[value].held]
        if read and len(op.makes) == 1 and not values[op.makes[0]].held and draw.random() < share:
            reuses, (made,) = draw.choice(read), op.makes
            scratch = op.working_bytes - values[made].size_bytes
            values[made] = replace(values[made], size_bytes=values[reuses].size_bytes)
            op = replace(op, reuses=reuses, working_bytes=values[made].size_bytes + scratch)
        ops.append(op)
    return replace(problem, ops=tuple(ops), values=tuple(values))


def with_encodings(problem: Problem, seed: int, share: float = 0.6, error_budget: float = 1.0) -> Problem:
    """Return the problem with one or two random encodings for a share of its values, some read themselves."""
    draw = random.Random(seed)
    values = []
    for value, readers in zip(problem.values, problem.readers, strict=True):
        encodings = []
        read_once = sum(reader >= problem.forward_length for reader in readers) == 1
        if value.size_bytes and draw.random() < share:
            for number in range(draw.choice((1, 1, 2))):
                size_bytes = draw.randint(0, value.size_bytes)
                read_bytes = draw.choice((None, 0, value.size_bytes // 4)) if read_once else None
                encodings.append(
                    EncodingOption(
                        f"code{number}",
                        size_bytes,
                        encode_seconds=draw.choice((0.0, 0.5, 1.0, 2.0)),
                        decode_seconds=draw.choice((0.0, 0.25, 1.0, 3.0)),
                        encode_working_bytes=size_bytes + draw.choice((0, 0, 4)),
                        decode_working_bytes=value.size_bytes + draw.choice((0, 0, 4)) if read_bytes is None else 0,
                        fidelity=draw.choice(("bitwise", "rounding", "approximate")),
                        error=draw.choice((0.001, 0.003, 0.01)),
                        decodes_to_placeholder=number == 1,
                        read_itself_bytes=read_bytes,
                    )
                )
        values.append(replace(value, encodings=tuple(encodings)))
    return replace(problem, values=tuple(values), error_budget=error_budget)


def with_halves(problem: Problem, least_bytes: int, seconds_per_byte: float, bits: tuple[int, ...] = (16,)) -> Problem:
    """Return the problem with encodings of fewer than 32 bits for all values of at least `least_bytes`.

    seconds_per_byte: the time per byte of the value, for encoding and for decoding.
    """
    values = []
    for value in problem.values:
        if value.size_bytes >= least_bytes and not value.resident:
            size, seconds = value.size_bytes, value.size_bytes * seconds_per_byte
            encodings = tuple(
                EncodingOption(f"{b} bits", size * b // 32, seconds, seconds, size * b // 32, size, "rounding", 2.0**-b)
                for b in bits
            )
            value = replace(value, encodings=encodings)
        values.append(value)
    return replace(problem, values=tuple(values))
