"""The page of ``tools/demo.py`` in a headless browser: drop a picture, see a box."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from mmvitattn.__main__ import find_tools


def test_models_that_cannot_be_used(run_tool, tmp_path):
    pytest.importorskip('gradio', reason='extra [demo]')
    (tmp_path / 'text.onnx').write_text('no model')
    for model, message in {
        'linglo_b0': 'give CONFIG,CHECKPOINT or a file that ends in .onnx',
        'gone.py,gone.pth': 'there is no config gone.py',
        tmp_path / 'text.onnx': 'text.onnx: ',
    }.items():
        assert message in run_tool('demo.py', model, status=2).stderr


@pytest.fixture
def serve(root, tmp_path):
    """Starts the page as a user would; returns its address."""
    started = []

    def start(*models):
        log = tmp_path / 'log.txt'
        command = [sys.executable, '-u', str(find_tools()['demo']), *map(str, models)]
        environment = {**os.environ, 'GRADIO_ANALYTICS_ENABLED': 'False'}
        with log.open('w') as stream:
            started.append(
                subprocess.Popen(
                    command, stdout=stream, stderr=subprocess.STDOUT, cwd=root, env=environment
                )
            )
        for _ in range(600):
            if found := re.search(r'http://127\.0\.0\.1:\d+', log.read_text()):
                return found[0]
            assert started[-1].poll() is None, log.read_text()
            time.sleep(0.5)
        raise AssertionError(log.read_text())

    yield start
    for process in started:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_page_in_a_browser(serve, run_tool, tiny_config, tiny_checkpoint, write_picture, tmp_path):
    pytest.importorskip('gradio', reason='extra [demo]')
    playwright = pytest.importorskip('playwright.sync_api')
    browser_path = os.environ.get('CHROMIUM') or shutil.which('chromium')
    if not browser_path:
        pytest.skip('no Chromium; CHROMIUM names its program')
    config, onnx = tiny_config('detector'), tmp_path / 'model.onnx'
    checkpoint, _ = tiny_checkpoint(config)
    run_tool('export_onnx.py', config, checkpoint, '--out', onnx, '--exporter', 'torchscript')
    address = serve(f'{config},{checkpoint}', onnx)
    picture, broken = write_picture('picture.png', 100, 140), tmp_path / 'broken.png'
    broken.write_bytes(picture.read_bytes()[:60])
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1280, height=1400))
        page.set_default_timeout(60_000)
        page.goto(address)
        shown = page.locator('img[src*="/file="]')  # not the icons
        page.locator('input[type=file]').first.set_input_files(str(picture))
        page.locator('input[type=number]').first.fill('0')
        page.get_by_role('button', name='Predict').click()
        page.get_by_text('"detections"').or_(page.get_by_text('detections')).first.wait_for()
        shown.nth(2).wait_for()  # picture, result, attention
        page.wait_for_timeout(1000)
        page.screenshot(path=os.environ.get('DEMO_SCREENSHOT', str(tmp_path / 'page.png')))
        page.locator('input[role=listbox], input[aria-label=Model]').first.click()
        page.get_by_role('option', name='model.onnx').click()
        page.get_by_role('button', name='Predict').click()
        shown.nth(2).wait_for(state='detached')  # ONNX has no attention
        page.get_by_label('Remove Image').or_(page.get_by_label('Clear')).first.click()
        page.locator('input[type=file]').first.set_input_files(str(broken))
        page.get_by_role('button', name='Predict').click()
        page.get_by_text('broken.png: ').first.wait_for()
        browser.close()
