"""A script that plays the person of an audit: it knows the true classes, and types them into the page.

    python docs/evidence/studies/audit_person.py RUN/audit/index.html photos.tar rest.tar answers.csv 0.97

The tar files hold the same images in the same order, the second one as CLASS/IMAGE. The last number says how often the
person is right; else she takes another class at random. Needs selenium and Chromium.
"""

import json
import random
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys


def names_in(path: str) -> list[str]:
    """Return the files of a tar file in order."""
    with tarfile.open(path) as file:
        return [member.name for member in file if member.isfile()]


def main(page: str, photos: str, truth: str, output: str, right: str = "1") -> None:
    """Answer every image of a page that has no answer yet, and download the answers."""
    classes = dict(zip(names_in(photos), (Path(name).parent.name for name in names_in(truth))))
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    browser, folder = webdriver.Chrome(options=options), tempfile.mkdtemp()
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": folder}
    )
    browser.get(Path(page).resolve().as_uri())
    audit = json.loads(browser.find_element(By.ID, "audit").get_attribute("textContent"))
    started = time.monotonic()
    given = dict(audit["given"])
    for key in (key for key in audit["keys"] if key not in given):
        # of one image the same person says the same
        person = random.Random(f"person {key}")
        others = [name for name in audit["classes"] if name != classes[key]]
        says = classes[key] if person.random() < float(right) else person.choice(others)
        ActionChains(browser).send_keys(f"/{says}{Keys.ENTER}").perform()
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
    while not (files := list(Path(folder).glob("*.csv"))):
        time.sleep(0.1)
    Path(output).write_bytes(files[0].read_bytes())
    print(browser.find_element(By.ID, "count").text, f"in {time.monotonic() - started:.0f} seconds")
    browser.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
