"""The door that a Hugging Face Space and `make run` use: opens the page (sst_ui/app.py).

python app.py [--host 127.0.0.1] [--port 7860] [--model demo]
"""

import sys

from sst_ui.app import main

if __name__ == "__main__":
    sys.exit(main())
