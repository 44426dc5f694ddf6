"""Text in, integers out: the corpus, the tokenizers, training batches and what evaluation scores.

Plain NumPy; nothing here imports JAX. In reading order: `corpus` (six bundled domains), `user_text` (your own files),
`tokenizer`, `batches` (training), `evaluation`, `ngram` (a bar to clear). ``python -m minimoe.data.train_tokenizer`` makes
the bundled tokenizer.
"""

from minimoe.data.batches import Batch, TrainingData, training_data
from minimoe.data.corpus import DOMAINS, Document, corpus_hash, documents, split_of, verify
from minimoe.data.evaluation import Windows, evaluation_documents, windows
from minimoe.data.ngram import ByteNgram, ngram_bits_per_byte
from minimoe.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer
from minimoe.data.user_text import load_text

__all__ = [
    "DOMAINS",
    "BPETokenizer",
    "Batch",
    "ByteNgram",
    "ByteTokenizer",
    "Document",
    "Tokenizer",
    "TrainingData",
    "Windows",
    "corpus_hash",
    "documents",
    "evaluation_documents",
    "load_text",
    "load_tokenizer",
    "ngram_bits_per_byte",
    "split_of",
    "training_data",
    "verify",
    "windows",
]
