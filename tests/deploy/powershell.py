"""deploy.ps1 for the tests: its text, and what its grammar says of it."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy.ps1"
PESTER = ROOT / "tests" / "deploy" / "Deploy.Tests.ps1"
PYTHON = ROOT / ".venv-tools" / "bin" / "python"

needs_grammar = pytest.mark.skipif(
    not PYTHON.exists(), reason="the grammar is not installed: make .venv-tools/.installed"
)


def parsed(*sources: str) -> list[dict[str, Any]]:
    """What grammar.py finds in each source."""
    command = [str(PYTHON), str(Path(__file__).with_name("grammar.py"))]
    done = subprocess.run(command, input=json.dumps(sources), capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


@cache
def facts(path: Path) -> dict[str, Any]:
    return parsed(path.read_text(encoding="utf-8"))[0]


def names(text: str) -> set[str]:
    return set(text.split())


# Of `Get-Verb` of PowerShell 7, such as could be meant here.
APPROVED_VERBS = names("""
    Add Assert Backup Build Clear Close Compare Complete Confirm Convert ConvertFrom ConvertTo Copy Deploy Disable
    Dismount Enable Enter Exit Expand Export Find Format Get Hide Import Initialize Install Invoke Join Limit Lock
    Measure Merge Mount Move New Open Optimize Out Ping Pop Protect Publish Push Read Receive Register Remove Rename
    Repair Request Reset Resize Resolve Restart Restore Resume Revoke Save Search Select Send Set Show Skip Split
    Start Step Stop Submit Suspend Switch Sync Test Trace Unblock Undo Uninstall Unlock Unprotect Unpublish Unregister
    Update Use Wait Watch Write
""")
# Variables that PowerShell sets.
AUTOMATIC = names("""
    _ psitem true false null args input lastexitcode psscriptroot pscommandpath pscmdlet psboundparameters
    psversiontable matches host pid home pwd error iswindows islinux ismacos myinvocation whatifpreference
    confirmpreference verbosepreference errorview psstyle
""")
# Variables that it reads.
PREFERENCES = names("""
    erroractionpreference progresspreference informationpreference whatifpreference confirmpreference outputencoding
    psnativecommanduseerroractionpreference psnativecommandargumentpassing verbosepreference warningpreference
    debugpreference psdefaultparametervalues lastexitcode
""")
# Cmdlets that may be called.
CMDLETS = names("""
    Add-Content Add-Type Compare-Object ConvertFrom-Json ConvertTo-Json Copy-Item ForEach-Object Format-Table
    Get-ChildItem Get-Command Get-Content Get-Date Get-Item Get-Location Get-Member Get-Process Get-PSDrive Get-Random
    Get-Unique Get-Variable Group-Object Invoke-RestMethod Invoke-WebRequest Join-Path Measure-Object Move-Item
    New-Guid New-Item
    New-Object New-TemporaryFile Out-File Out-Null Out-String Pop-Location Push-Location Read-Host Remove-Item
    Remove-Variable Resolve-Path Select-Object Select-String Set-Content Set-Location Set-StrictMode Set-Variable
    Sort-Object Split-Path Start-Process Start-Sleep Stop-Process Test-Path Wait-Process Where-Object Write-Error
    Write-Information Write-Output Write-Progress Write-Verbose Write-Warning Get-FileHash Get-Host Set-Item
    Tee-Object Test-Connection Write-Debug
""")
