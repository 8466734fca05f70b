"""A pre-trained model on a laptop: SmolLM2-135M-Instruct learns to answer in one sentence, and then in eight words.

make smollm2
"""
