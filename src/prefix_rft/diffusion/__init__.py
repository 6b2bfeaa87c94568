"""SSPO for diffusion models, beside Diffusion-DPO and SFT: pictures and video, no tokens."""
