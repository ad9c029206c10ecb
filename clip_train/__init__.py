"""clip_train: train CLIP from image-text shards as the paper did (Radford et al. 2021, arXiv 2103.00020).

    python -m clip_train train --data DIR --model ViT-B-32 --output RUN

The way of a run, one file a role:

    data.py  image.py  tokenizer.py       shards -> uint8 crops and packed token ids, in an order that is one integer
    model.py  resnet.py  text.py          the two towers, with the names and the numerics of OpenAI's code
    loss.py  loss_triton.py               symmetric InfoNCE in chunks, exact over ranks and accumulation
    optim.py  distributed.py  checkpoint.py
    training.py                           the loop
    evaluate.py  probe.py  overlap.py     zero-shot, retrieval, linear probe, data overlap
    convert.py                            OpenAI, open_clip and Hugging Face weights, both ways

Nothing heavy is imported here: torch is loaded by the modules that compute.
"""
