"""Text in, integers out: the corpus, the tokenizers, training batches and what evaluation scores.

Plain NumPy; nothing here imports JAX. In reading order: `corpus` (six bundled domains), `user_text` (your own files),
`sources` (one or the other, and its description), `tokenizer`, `batches` (training), `beginnings` (prompts),
`evaluation`, `ngram` (a bar to clear), `facts` (a book to learn by heart), `needle` and `pair_needles` (pairs to find
again); and `tasks`, `task_families`, `task_answers`: generated reasoning problems whose answers can be checked.
``python -m minimoe.data.train_tokenizer`` makes the bundled tokenizer.
"""

from minimoe.data.batches import Batch, TrainingData, training_data
from minimoe.data.beginnings import beginnings
from minimoe.data.corpus import DOMAINS, Document, corpus_hash, documents, split_of, verify
from minimoe.data.evaluation import Windows, evaluation_documents, windows
from minimoe.data.facts import FactBook
from minimoe.data.needle import Needles
from minimoe.data.ngram import ByteNgram, ngram_bits_per_byte
from minimoe.data.pair_needles import PairNeedles
from minimoe.data.sources import choose_documents, describe_data
from minimoe.data.task_answers import StepCheck, check_answer, check_steps, parse_answer
from minimoe.data.task_families import Step
from minimoe.data.tasks import FAMILIES, FORMS, LEVELS, Problem, is_held_out, problem, task_documents
from minimoe.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, check_vocabulary, load_tokenizer
from minimoe.data.user_text import load_text

__all__ = [
    "DOMAINS",
    "FAMILIES",
    "FORMS",
    "LEVELS",
    "BPETokenizer",
    "Batch",
    "ByteNgram",
    "ByteTokenizer",
    "Document",
    "FactBook",
    "Needles",
    "PairNeedles",
    "Problem",
    "Step",
    "StepCheck",
    "Tokenizer",
    "TrainingData",
    "Windows",
    "beginnings",
    "check_answer",
    "check_steps",
    "check_vocabulary",
    "choose_documents",
    "corpus_hash",
    "describe_data",
    "documents",
    "evaluation_documents",
    "is_held_out",
    "load_text",
    "load_tokenizer",
    "ngram_bits_per_byte",
    "parse_answer",
    "problem",
    "split_of",
    "task_documents",
    "training_data",
    "verify",
    "windows",
]
