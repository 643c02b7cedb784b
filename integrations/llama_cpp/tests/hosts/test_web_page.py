"""llama-server's own web page in a browser: a chat of 30 rounds, many times longer than the window."""
import os
import pathlib
import re
import shutil
import unittest

import places
import server

# As scripts/llama_web_page prints it, and where a picture of the last round is to be written.
PAGE = pathlib.Path(os.environ.get("SKC_HOST_PAGE", ""))
PICTURE = os.environ.get("SKC_HOST_PICTURE", "")
BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
ROUNDS, ANSWER, CONTEXT = 30, 100, 256
# What the page says where stock's context is full.
FULL = "(?i)available context|context size"

try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    webdriver = None


def missing():
    if not os.environ.get("SKC_HOST_PAGE"):
        return "no web page of llama-server: run.py --page names it"
    if not BROWSER or not DRIVER:
        return "no chromium, or no chromedriver"
    return "" if webdriver else "no Selenium in this Python"


@unittest.skipIf(missing(), missing())
class WebPage(unittest.TestCase):
    def browser(self):
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        # Chromium's sandbox needs rights that containers and root do not have.
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,860"):
            options.add_argument(argument)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.addCleanup(browser.quit)
        return browser

    def metric(self, host, name):
        with host.open("/metrics") as answer:
            return int(re.search(rf"^llamacpp:{name} (\d+)$", answer.read().decode(), re.MULTILINE).group(1))

    def test_thirty_rounds(self):
        # The page has no limit for an answer: -n is the server's.
        host = server.serve(self, "-c", CONTEXT, "-np", 1, "-n", ANSWER, "--metrics", "--path", PAGE / "page",
                            settings={})
        browser = self.browser()
        browser.get(host.url + "/")
        wait = WebDriverWait(browser, 60)

        def said(who):
            return browser.find_elements(By.CSS_SELECTOR, f"[aria-label='{who} message with actions']")

        for round_ in range(ROUNDS):
            box = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "textarea"))
            start = 1000 * round_
            box.send_keys(places.TEXT[start:start + 60].replace("\n", " "))
            box.send_keys(Keys.ENTER)
            wait.until(lambda _: len(said("User")) == len(said("Assistant")) == round_ + 1)
            # The server is done, and the page has the tokens and the time that it shows below an answer.
            wait.until(lambda _: self.metric(host, "tokens_predicted_total") == ANSWER * (round_ + 1)
                       and re.search(r"\d tokens", said("Assistant")[-1].text))
            self.assertNotRegex(browser.find_element(By.TAG_NAME, "body").text, FULL)
        for answer in said("Assistant"):
            # The text itself is drawn at random, and Markdown may swallow some of it.
            self.assertIn(f"{ANSWER} tokens", answer.text)
        if PICTURE:
            gauge = browser.find_element(By.CSS_SELECTOR, "[aria-label='Context usage']")
            webdriver.ActionChains(browser).move_to_element(gauge).pause(2).perform()
            browser.save_screenshot(PICTURE)

        length = self.metric(host, "n_tokens_max")
        read = self.metric(host, "prompt_tokens_total")
        print(f"{length} tokens of chat over a window of {CONTEXT}; {read} of them were read from prompts, "
              f"{self.metric(host, 'prompt_tokens_cached_total')} were in the cache")
        self.assertGreater(length, 10 * CONTEXT)
        # Each round reads its question, and the little of an answer's end that the page sends back in another form.
        self.assertLess(read, length - ANSWER * ROUNDS + 12 * ROUNDS)

    def test_stock_ends(self):
        host = server.serve(self, "-c", CONTEXT, "-np", 1, "-n", ANSWER, "--path", PAGE / "page")
        browser = self.browser()
        browser.get(host.url + "/")
        wait = WebDriverWait(browser, 60)
        box = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "textarea"))
        box.send_keys(places.TEXT[:300].replace("\n", " "))
        box.send_keys(Keys.ENTER)
        wait.until(lambda b: re.search(FULL, b.find_element(By.TAG_NAME, "body").text))


if __name__ == "__main__":
    unittest.main()
