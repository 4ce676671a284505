"""The Transformer by hand: every step of the paper with numbers small enough to check.

    python examples/by_hand/transformer.py

Each section is a function: it computes with the classes of `seq2seq`, prints what it gets, with
shapes, and returns it. They follow "Attention Is All You Need" (Vaswani et al. 2017). In shapes B
is sentences, S source positions, T target positions, D d_model, V words of the vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seq2seq.attention import Attention, attend, causal_mask
from seq2seq.batch import Batch, Example, collate
from seq2seq.config import ModelConfig
from seq2seq.model import (
    DecoderLayer,
    Embedding,
    EncoderLayer,
    Memory,
    Transformer,
    embed,
    sinusoids,
)
from tokenizer.special import BOS, EOS, PAD

SPECIAL = ["<pad>", "<unk>", "<bos>", "<eos>", "<mask>"]  # ids 0 to 4, as in tokenizer/special.py

THRONES = "when you play the game of thrones"

# Three embeddings of three numbers.
GREETING = ["Hello", "shiny", "sun"]
E_GREETING = torch.tensor([[0.34, 0.22, 0.54], [0.53, 0.34, 0.98], [0.29, 0.54, 0.93]])

# Six more, from S. Raschka, "Build a Large Language Model (From Scratch)", chapter 3.
STEPS = ["Your", "journey", "starts", "with", "one", "step"]
X_STEPS = torch.tensor(
    [
        [0.43, 0.15, 0.89],
        [0.55, 0.87, 0.66],
        [0.57, 0.85, 0.64],
        [0.22, 0.58, 0.33],
        [0.77, 0.25, 0.10],
        [0.05, 0.80, 0.55],
    ]
)

# "the" is die, der or das: which one depends on the noun, so the decoder has to look it up.
PAIRS = [
    ("the sun shines", "die Sonne scheint"),
    ("the dog runs", "der Hund rennt"),
    ("the child sings a song", "das Kind singt ein Lied"),
]


# 1 to 3: from text to vectors


def tokens_and_ids(text: str) -> tuple[list[str], Tensor]:
    heading("1. Tokens and ids")
    vocab = vocabulary([text])
    words = text.split(" ")
    ids = torch.tensor([ids_of(text, vocab)])
    say(
        f"The text        {text}",
        f"The vocabulary  {' '.join(vocab)}",
        "",
        "A model reads numbers: a word becomes its place in the vocabulary, counted from 0.",
        "(Real models cut words into pieces, so that no word is unknown: tokenizer/bpe.py.)",
    )
    show("ids (B, S)", ids, ["id"], words)
    return words, ids


def embeddings(words: list[str], ids: Tensor, d_model: int = 6) -> tuple[Embedding, Tensor]:
    heading("2. Embeddings (section 3.4 of the paper)")
    torch.manual_seed(0)
    embedding = Embedding(tiny_config(vocab_size=12, d_model=d_model))
    with torch.no_grad():
        x = embed(ids, embedding.weight) * d_model**0.5
    say(
        f"The embedding is a matrix: a row of D = {d_model} numbers for each of the 12 ids, random",
        "at first, then learnt. To embed is to take rows, times sqrt(D), which makes them about",
        "as large as the positions that come next.",
    )
    show("x = weight[ids] * sqrt(D) (B, S, D)", x, words)
    return embedding, x


def positions(words: list[str], x: Tensor) -> tuple[Tensor, Tensor]:
    heading("3. Positions (section 3.5)")
    table = sinusoids(torch.arange(len(words)), x.size(-1))
    say(
        "Attention, below, does not know what comes first. So each position, counted from 0,",
        "adds a pattern of its own: column 2i has the sine of pos / 10000^(2i/D), column 2i + 1",
        "its cosine. The first columns turn fast, the last slowly, like the hands of a clock.",
    )
    show("positions (S, D)", table, [f"{pos} {word}" for pos, word in enumerate(words)])
    show("x + positions (B, S, D), what the encoder reads", x + table, words)
    return table, x + table


# 4 to 7: attention


def similarity() -> tuple[Tensor, Tensor, Tensor]:
    heading("4. Attention in its simplest form: who resembles whom")
    query = E_GREETING[1:2]
    scores = query @ E_GREETING.T
    weights = scores.softmax(-1)
    # `attend` divides scores by √d, of which section 5 tells; √d times the query undoes it.
    e = one_head_of(E_GREETING)
    context = attend(one_head_of(query) * 3**0.5, e, e, see_all(1, 3))[0, 0]
    say("Three words, three numbers each. How much should 'shiny' listen to each of them?")
    show("e (S, D)", E_GREETING, GREETING)
    show("scores = shiny @ e.T (1, S), large where vectors agree", scores, ["shiny"], GREETING)
    show("weights = softmax(scores) (1, S), positive, sum 1", weights, ["shiny"], GREETING)
    show("context = weights @ e (1, D), the mean by these weights", context, ["shiny"])
    say(
        "A text in circulation has [0.3992, 0.3858, 0.8610] here, from rounded weights.",
        "If you check by hand, round at the end only.",
    )
    return scores, weights, context


def one_head() -> tuple[Tensor, Tensor, Tensor]:
    heading("5. One head: queries, keys and values (section 3.2.1)")
    torch.manual_seed(123)
    w_q, w_k, w_v = torch.rand(3, 2), torch.rand(3, 2), torch.rand(3, 2)
    q, k, v = X_STEPS @ w_q, X_STEPS @ w_k, X_STEPS @ w_v
    scores = q @ k.T / 2**0.5
    weights = scores.softmax(-1)
    context = attend(one_head_of(q), one_head_of(k), one_head_of(v), see_all(6, 6))[0, 0]
    say(
        "To look, to be found and to be passed on are three roles. So each word makes three",
        "vectors, by three learnt matrices: a query (what I look for), a key (what I offer) and",
        "a value (what I say).",
    )
    show("x (T, 3)", X_STEPS, STEPS)
    show("q = x @ w_q (T, 2)", q, STEPS)
    show("k = x @ w_k (T, 2)", k, STEPS)
    show("v = x @ w_v (T, 2)", v, STEPS)
    say(
        "Products of vectors grow with their width d, and a softmax of large numbers is almost",
        "0 or 1, where nothing more is learnt: hence the division by sqrt(d), here sqrt(2).",
    )
    show("scores = q @ k.T / sqrt(2) (T, S)", scores, STEPS, STEPS)
    show("weights = softmax(scores) (T, S), every row has sum 1", weights, STEPS, STEPS)
    show("context = weights @ v (T, 2), the result of `attend`", context, STEPS)
    return scores, weights, context


def causal_head() -> tuple[Tensor, Tensor]:
    heading("6. The causal mask: no look into the future (section 3.2.3)")
    torch.manual_seed(789)
    w_q, w_k, w_v = (nn.Linear(3, 2, bias=False) for _ in range(3))
    mask = causal_mask(6, 6, torch.device("cpu"))
    with torch.no_grad():
        q, k, v = (one_head_of(w(X_STEPS)) for w in (w_q, w_k, w_v))
        context = attend(q, k, v, see_all(6, 6))[0, 0]
        # A weighted mean of one-hot vectors is the weights: with the identity as values, they show.
        weights = attend(q, k, one_head_of(torch.eye(6)), mask)[0, 0]
    say("The same words, other matrices: now nn.Linear, as models hold them. Without a mask:")
    show("context (T, 2)", context, STEPS)
    say(
        "But whoever is to guess the next word must not see it. The mask says which keys",
        "(columns) a query (row) may see: itself and what came before. All other scores become",
        "minus infinity, and so their weights 0.",
    )
    show("mask (T, S), 1 = may be seen", mask[0, 0].int(), STEPS, STEPS)
    show("weights with the mask (T, S), every row has sum 1", weights, STEPS, STEPS)
    return context, weights


def two_heads() -> tuple[Tensor, Tensor]:
    heading("7. Several heads (section 3.2.2)")
    torch.manual_seed(123)
    w_q, w_k, w_v = (nn.Linear(3, 2, bias=False) for _ in range(3))
    w_out = nn.Linear(2, 2)
    # Our layer with these matrices; it keeps those of keys and values as one.
    layer = Attention(d_model=2, n_heads=2)
    layer.q_proj, layer.out_proj = w_q, w_out
    layer.kv_proj = nn.Linear(3, 4, bias=False)
    layer.kv_proj.weight = nn.Parameter(torch.cat((w_k.weight, w_v.weight)))
    x, mask = X_STEPS[None], causal_mask(6, 6, torch.device("cpu"))
    with torch.no_grad():
        weights, out = layer.weights(x, x, mask)[0], layer(x, x, mask)[0]
    say(
        "A head looks at one thing at a time. For two heads, q, k and v are cut in two: the first",
        "half of the columns is head 1, the second head 2, each with its own softmax. What they",
        "find is put side by side again, and an output matrix mixes it.",
    )
    show("weights of head 1 (T, S)", weights[0], STEPS, STEPS)
    show("weights of head 2 (T, S)", weights[1], STEPS, STEPS)
    show("Attention(x, x, mask) (T, D)", out, STEPS)
    return weights, out


# 8 and 9: the rest of an encoder layer


def add_and_norm(words: list[str], x: Tensor) -> tuple[EncoderLayer, Tensor]:
    heading("8. Add & norm (section 3.1)")
    torch.manual_seed(0)
    layer = EncoderLayer(tiny_config(vocab_size=12, d_model=x.size(-1)))
    with torch.no_grad():
        y = layer.self_attn(x, x, see_all(len(words), len(words)))
        normed = layer.self_attn_residual.leave(x, y)
    say(
        "Back to our sentence. Attention with two heads, of all words to all words, gives y. It is",
        "added to x, so that a layer need only say what should change. Then each row is shifted",
        "to mean 0 and scaled to variance 1, so that numbers keep their size through all layers.",
    )
    show("y = Attention(x, x) (B, S, D)", y, words)
    show("x + y (B, S, D)", x + y, words)
    show("norm(x + y) (B, S, D)", normed, words)
    moments = torch.stack((normed.mean(-1), normed.var(-1, unbiased=False)), dim=-1)
    show("and of each row (B, S, 2)", moments, words, ["mean", "variance"])
    say(
        "Today the norm mostly comes before the sublayer, x + f(norm(x)), which trains more",
        "easily when there are many layers: model.norm = 'pre'. Here we follow the paper.",
    )
    return layer, normed


def feed_forward(words: list[str], layer: EncoderLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    heading("9. Feed-forward (section 3.3)")
    with torch.no_grad():
        inner = layer.ffn.up(x).relu()
        out = layer.ffn_residual.leave(x, layer.ffn(x))
    say(
        "Attention moves information between words; now each word thinks for itself: a matrix to",
        "a wider space, everything negative becomes 0, and a matrix back. Then add & norm again.",
    )
    show("inner = relu(up(x)) (B, S, d_ff), 8 of 12 columns", inner[..., :8], words)
    show("norm(x + down(inner)) (B, S, D), what the encoder layer says", out, words)
    say("The paper has six such layers, one upon the other.")
    return inner, out


# 10 to 14: translating


def decoder_input(vocab: list[str]) -> Batch:
    heading("10. What the decoder reads: between start and end")
    pairs = [(ids_of(source, vocab), ids_of(target, vocab)) for source, target in PAIRS]
    batch = collate([Example(src, tgt, index) for index, (src, tgt) in enumerate(pairs)])
    say(
        "Three sentences to learn. A source ends in <eos>; short ones are filled up with <pad>,",
        "which no one may look at (the padding mask).",
    )
    show_words("src (B, S)", batch.src, vocab)
    say(
        "The decoder reads the target behind <bos> and has to say, at each position, the word",
        "that follows, at last <eos>. All positions learn at once: the causal mask sees to it",
        "that none of them reads its answer.",
    )
    show_words("tgt_in (B, T), what it reads", batch.tgt_in, vocab)
    show_words("tgt_out (B, T), what it has to say", batch.tgt_out, vocab)
    return batch


def train(batch: Batch, vocab: list[str], n_steps: int = 100) -> tuple[Transformer, list[float]]:
    heading("11. Training, in a second")
    torch.manual_seed(1)
    model = Transformer(tiny_config(vocab_size=len(vocab), d_model=16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    answers = batch.tgt_out.flatten()
    losses = []
    for _ in range(n_steps):
        logits = model(batch.src, batch.tgt_in).flatten(0, 1)  # (B, T, V) → (B·T, V)
        loss = nn.functional.cross_entropy(logits, answers, ignore_index=PAD)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    say(
        f"One encoder layer, one decoder layer, D = 16, two heads; {n_steps} steps of AdamW. The",
        "loss is -log(probability of the right word), on average over the words:",
    )
    shown = range(0, n_steps, max(1, n_steps // 5))
    show("loss", torch.tensor([[losses[i] for i in shown]]), [""], [f"step {i}" for i in shown])
    return model.eval(), losses


@torch.no_grad()
def cross_attention(
    model: Transformer, vocab: list[str], source: str, target: str
) -> tuple[Memory, Tensor, Tensor]:
    heading("12. Cross-attention: where source and target meet (section 3.2.3)")
    src, tgt_in = framed(source, target, vocab)
    n_words = tgt_in.size(1)
    memory = model.encode(src)

    layer = model.decoder[0]
    assert isinstance(layer, DecoderLayer)  # a ModuleList forgets the type
    x = model.tgt_embedding(tgt_in)
    y = layer.self_attn(x, x, causal_mask(n_words, n_words, x.device))
    x = layer.self_attn_residual.leave(x, y)
    weights = layer.cross_attn.weights(x, memory.states, memory.mask)[0]
    y = layer.cross_attn(x, memory.states, memory.mask)
    x = layer.cross_attn_residual.leave(x, y)
    x = layer.ffn_residual.leave(x, layer.ffn(x))

    say(
        "The encoder reads the source, once; what it says is the memory. A decoder layer has",
        "masked self-attention, then cross-attention: queries come from the decoder, keys and",
        "values from the memory. So rows are target words and columns source words; out of each",
        "row comes the next target word. Then feed-forward.",
    )
    src_words, tgt_words = words_of(src[0], vocab), words_of(tgt_in[0], vocab)
    show("memory (B, S, D), 6 of 16 columns", memory.states[..., :6], src_words)
    show("weights of head 1 (T, S)", weights[0], tgt_words, src_words)
    show("weights of head 2 (T, S)", weights[1], tgt_words, src_words)
    show("what the decoder layer says (B, T, D), 6 of 16 columns", x[..., :6], tgt_words)
    return memory, weights, x


@torch.no_grad()
def next_token(model: Transformer, vocab: list[str], states: Tensor) -> tuple[Tensor, Tensor, str]:
    heading("13. Logits, softmax, the next token (section 3.4)")
    logits = model.output(states[0, -1:])
    probabilities = logits.softmax(-1)
    token = vocab[int(probabilities.argmax())]
    say(
        "The last row is multiplied with the embedding of every word of the vocabulary (the",
        "output matrix is the embedding: they are 'tied'). That makes V logits, which softmax",
        "turns into probabilities. The most probable word is next.",
    )
    columns = torch.cat((logits, probabilities)).T
    show("(V, 2)", columns, vocab, ["logit", "probability"])
    say(f"The next token is {token}.")
    return logits, probabilities, token


def loop(model: Transformer, vocab: list[str]) -> list[str]:
    heading("14. The loop: until the end token")
    say(
        "The chosen word is read in its turn, until <eos> is chosen. On the left what the decoder",
        "reads, on the right the three most probable words. This is greedy search; beam search,",
        "in seq2seq/search.py, keeps several beginnings alive.",
    )
    return [translate(model, vocab, source) for source, _ in PAIRS]


@torch.no_grad()
def translate(model: Transformer, vocab: list[str], source: str, max_len: int = 10) -> str:
    src, tgt_in = framed(source, "", vocab)  # tgt_in is <bos> alone
    memory = model.encode(src)
    trace = [source]
    while tgt_in[0, -1] != EOS and tgt_in.size(1) <= max_len:
        logits = model.decode(tgt_in, memory)[0, -1]  # (V,)
        best = logits.softmax(-1).topk(3)
        guesses = [f"{vocab[i]} {p:.3f}" for p, i in zip(best.values, best.indices, strict=True)]
        trace.append(f"  {' '.join(words_of(tgt_in[0], vocab)):29} -> {', '.join(guesses)}")
        tgt_in = torch.cat((tgt_in, best.indices[None, :1]), dim=1)
    say(*trace)
    return " ".join(vocab[i] for i in tgt_in[0].tolist() if i not in (BOS, EOS))


# What the sections share


def vocabulary(texts: Sequence[str]) -> list[str]:
    """All words, each at the place of its id."""
    return SPECIAL + sorted({word for text in texts for word in text.split()})


def ids_of(text: str, vocab: list[str]) -> list[int]:
    return [vocab.index(word) for word in text.split()]


def words_of(ids: Tensor, vocab: list[str]) -> list[str]:
    return [vocab[i] for i in ids.tolist()]


def framed(source: str, target: str, vocab: list[str]) -> tuple[Tensor, Tensor]:
    """One pair as a model reads it: src (1, S) and tgt_in (1, T)."""
    batch = collate([Example(ids_of(source, vocab), ids_of(target, vocab), index=0)])
    return batch.src, batch.tgt_in


def tiny_config(vocab_size: int, d_model: int) -> ModelConfig:
    """One layer on each side, two heads, the norm where the paper has it."""
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        d_ff=2 * d_model,
        n_heads=2,
        n_encoder_layers=1,
        n_decoder_layers=1,
        dropout=0.0,
        norm="post",
    )


def one_head_of(x: Tensor) -> Tensor:
    """A batch of one sentence with one head, as `attend` reads it: (T, d) → (1, 1, T, d)."""
    return x[None, None]


def see_all(n_queries: int, n_keys: int) -> Tensor:
    """The mask that hides nothing, (1, 1, T, S)."""
    return torch.ones(1, 1, n_queries, n_keys, dtype=torch.bool)


def heading(text: str) -> None:
    print(f"\n\n{text}\n{'-' * len(text)}")


def say(*lines: str) -> None:
    print("\n" + "\n".join(lines))


def show(name: str, table: Tensor, rows: Sequence[str], columns: Sequence[str] = ()) -> None:
    """Print a matrix, or a batch of one, with a name for each row and perhaps each column."""
    matrix = table[0] if table.dim() == 3 else table
    left = max(len(row) for row in rows)
    width = max([9, *(len(column) + 2 for column in columns)])
    decimals = 4 if matrix.is_floating_point() else 0
    print(f"\n  {name}: {tuple(table.shape)}")
    if columns:
        print(f"    {'':{left}}" + "".join(f"{column:>{width}}" for column in columns))
    for row, numbers in zip(rows, matrix.tolist(), strict=True):
        # Adding 0.0 makes -0.0 plain 0.0.
        cells = (f"{round(number, 4) + 0.0:{width}.{decimals}f}" for number in numbers)
        print(f"    {row:{left}}" + "".join(cells))


def show_words(name: str, ids: Tensor, vocab: list[str]) -> None:
    """Print a batch of ids, (B, T), each under its word."""
    print(f"\n  {name}: {tuple(ids.shape)}")
    for row in ids:
        print("    " + "".join(f"{word:>9}" for word in words_of(row, vocab)))
        print("    " + "".join(f"{i:>9}" for i in row.tolist()))


def main() -> None:
    words, ids = tokens_and_ids(THRONES)
    _, x = embeddings(words, ids)
    _, x = positions(words, x)

    similarity()
    one_head()
    causal_head()
    two_heads()

    layer, x = add_and_norm(words, x)
    feed_forward(words, layer, x)

    vocab = vocabulary([text for pair in PAIRS for text in pair])
    batch = decoder_input(vocab)
    model, _ = train(batch, vocab)
    _, _, states = cross_attention(model, vocab, "the sun shines", "die Sonne")
    next_token(model, vocab, states)
    loop(model, vocab)


if __name__ == "__main__":
    main()
