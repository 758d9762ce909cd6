# Google Colab opens this notebook alone: there, fetch its book and install what it needs.
import sys

if "google.colab" in sys.modules:
    import importlib
    import os
    import subprocess

    repository = ""
    checkout = os.path.expanduser("~/latephase-book")
    if not os.path.isdir(checkout):
        if not repository:
            name = input("OWNER/NAME of the repository, as in this page's own address: ")
            repository = "https://github.com/" + name.strip()
        subprocess.run(["git", "clone", "--depth=1", repository, checkout], check=True)
    needed = [checkout + "[plot,images]", "myst-nb", "pyyaml"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *needed], check=True)
    sys.path.append(os.path.join(checkout, "lib"))  # latebook, which is in no wheel
    importlib.invalidate_caches()
    os.chdir(os.path.join(checkout, "book"))
