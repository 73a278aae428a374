"""What judges a picture or a latent: one loss a file, the discriminators in their own folder.

Import a loss from its file, for example ``from lumitok.losses.vf import vf_loss``. Pictures are in
[-1, 1] throughout.
"""
