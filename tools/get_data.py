"""Download a data set, or say in one line why it cannot be had.

python tools/get_data.py Basic_VAE.ipynb MNIST data
"""

import sys

from definitions import definitions

if __name__ == "__main__":
    notebook, dataset, folder = sys.argv[1:]
    try:
        definitions(notebook)["load_images"](dataset, folder)
    except RuntimeError as error:
        sys.exit(str(error))
