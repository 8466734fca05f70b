"""A miniature of the sentiment experiment of the DPO paper: reward against KL for six ways of learning from judgements.

    make sentiment          # the whole of it
    make sentiment-quick    # a smaller model, one seed

Real film reviews, a language model trained on them from nothing, a classifier as the truth that labels are drawn from,
and every method trained by the library's own trainers. ``__main__`` says in which order; what is found is told in
docs/sentiment.md.
"""
