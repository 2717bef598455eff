#Requires -Version 7.2

<#
.SYNOPSIS
mlflow-live to Kubernetes with one command, and back again.

.DESCRIPTION
  ./deploy.ps1 [VERB] [OPTION ...]

Verbs
  up        build, scan, deploy, wait and test; on failure say why and roll back (default)
  status    image, digest, commit, revision, pods, live model version and lock; 0 if healthy, else 50
  rollback  back to the revision before, or to -ToRevision N, and test
  smoke     test what is live; 0 if it answers as it must, else 60
  doctor    only the preflight: what is missing, and how to mend it
  down      delete what `up` made, after asking

Options
  -Env NAME             local, staging or production (local)
  -Context NAME         context of kubectl (the current one); needed, or -Yes, if the cluster is not a local one
  -Namespace NAME       instead of the environment's own
  -Registry REF         HOST[:PORT][/PATH] to push to and to deploy from
  -Image REF            deploy this image; nothing is built
  -Tag TAG              instead of the commit's
  -Target NAME          auto, kind, k3d, minikube, docker-desktop, registry or ctr: how the cluster gets the image (auto)
  -With NAME            components of k8s/components, separated by commas
  -SkipBuild            the image is there already
  -SkipScan             no Trivy
  -Severity LIST        findings that stop the scan (CRITICAL,HIGH)
  -WhatIf               check, render and compare; build and change nothing
  -NoRollback           leave a failed release as it is
  -ToRevision N         for rollback
  -Timeout SECONDS      for the roll-out, and again for a rollback (300)
  -Yes                  ask nothing, and take a cluster that is not local
  -Json                 one JSON object on stdout at the end, everything else on stderr
  -?                    this

Environment
  PYTHON_IMAGE, NATIVE  build arguments (see docs/DEPLOYMENT.md)
  TRIVY_IMAGE           Trivy's container, used where Trivy is not installed
  DOCKER                the docker command (docker)
  CTR                   the ctr command of -Target ctr, such as "sudo k3s ctr" (ctr)
  DEPLOY_POLL_S         seconds between two looks at the cluster (1)
  DEPLOY_STUCK_S        how long a pod may be stuck (no image, crash loop) and the service have no ready pod (30)
  DEPLOY_SMOKE_S        how long the smoke test tries again while old pods are ending (60)
  NO_COLOR              no colours

Stages
  preflight build scan deploy roll-out health smoke

Exit codes
  0    done
  2    usage
  10   preflight
  20   build, push or load
  30   scan
  40   deploy: the cluster refuses, or another deployment holds the lock
  50   roll-out or health
  60   smoke
  70   the rollback failed too
  130  interrupted (SIGINT)
  143  interrupted (SIGTERM, SIGHUP)

A rollback that works keeps the code of the stage that failed. An interruption before the smoke test has passed rolls back as
well; a second one stops waiting for it. What is written stays in build/deploy: Trivy's report and the SBOM.

.PARAMETER Verb
What to do: up, status, rollback, smoke, doctor or down. Comes first.

.PARAMETER Env
The environment, which is an overlay of k8s/overlays: local, staging or production.

.PARAMETER Context
A context of kubectl. One that is not local has to be named, or -Yes said.

.PARAMETER Namespace
The namespace, instead of the environment's own.

.PARAMETER Registry
HOST[:PORT][/PATH] to push to and to deploy from.

.PARAMETER Image
The image to deploy. Nothing is built.

.PARAMETER Tag
The tag of the image, instead of the commit's.

.PARAMETER Target
How the cluster gets the image: auto, kind, k3d, minikube, docker-desktop, registry or ctr.

.PARAMETER With
Components of k8s/components.

.PARAMETER SkipBuild
The image is there already.

.PARAMETER SkipScan
No scan by Trivy.

.PARAMETER Severity
The findings that stop the scan.

.PARAMETER NoRollback
Leave a failed release as it is.

.PARAMETER ToRevision
The revision that `rollback` goes back to.

.PARAMETER Timeout
Seconds for the roll-out, and again for a rollback.

.PARAMETER Yes
Ask nothing, and take a cluster that is not local.

.PARAMETER Json
One JSON object on stdout at the end, everything else on stderr.

.PARAMETER Rest
What no other parameter takes. It is refused.

.EXAMPLE
./deploy.ps1
Builds the image, brings it to the local cluster and tests it.

.EXAMPLE
./deploy.ps1 up -Env production -Context prod -Registry registry.example.org/ml -WhatIf
Says what would be done, and lets the cluster check it.

.EXAMPLE
./deploy.ps1 rollback -Env production -Context prod
Goes back to the revision before.

.NOTES
deploy.sh is the same in bash: a test compares the tables above. It needs kubectl, git and, to build, Docker. What PowerShell
itself refuses before the script begins, such as a parameter without its value, ends with 1.

.LINK
docs/DEPLOYMENT.md
#>
[CmdletBinding(SupportsShouldProcess, PositionalBinding = $false)]
param(
    # Choices are completed here and checked by Initialize-Option, because what PowerShell refuses would end with 1, not 2.
    [Parameter(Position = 0)]
    [ArgumentCompletions('up', 'status', 'rollback', 'smoke', 'doctor', 'down')]
    [string] $Verb = 'up',
    [Alias('Environment')]
    [ArgumentCompletions('local', 'staging', 'production')]
    [string] $Env = 'local',
    [string] $Context = '',
    [string] $Namespace = '',
    [string] $Registry = '',
    [string] $Image = '',
    [string] $Tag = '',
    [ArgumentCompletions('auto', 'kind', 'k3d', 'minikube', 'docker-desktop', 'registry', 'ctr')]
    [string] $Target = 'auto',
    [string[]] $With = @(),
    [switch] $SkipBuild,
    [switch] $SkipScan,
    [string[]] $Severity = @('CRITICAL', 'HIGH'),
    [switch] $NoRollback,
    [string] $ToRevision = '',
    [string] $Timeout = '300',
    [switch] $Yes,
    [switch] $Json,
    [Parameter(ValueFromRemainingArguments)]
    [string[]] $Rest = @()
)

# However the script ends, Complete-Deployment, which the `finally` at the end of the file calls, puts things right: children,
# rollback, lock, temporary folder, report. Ctrl+C runs it as well. Functions that can fail without an end return $false and
# say why in $Run.Why.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
if (Test-Path -Path 'Variable:PSNativeCommandUseErrorActionPreference') {
    Set-Variable -Name PSNativeCommandUseErrorActionPreference -Value $false -WhatIf:$false # Invoke-Native decides
}

$App = 'mlflow-live'
$Selector = "app.kubernetes.io/name=$App,app.kubernetes.io/instance=$App"
$Lock = "$App-deploy-lock"
$Manager = 'deploy'
$LocalPort = 8080 # of the line that shows how to reach the service
$DiskMB = 5000 # both images, their layers and an archive of one
$TrivyDefault = 'aquasec/trivy:0.74.0@sha256:62b1e65e8869bc4b4c6aa4fa2b21595256c7c2f6018a9d9ad61caf87187c1969'
$StageCode = @{
    preflight = 10; build = 20; scan = 30; deploy = 40; 'roll-out' = 50; health = 50; smoke = 60; rollback = 70; usage = 2
}
$Enforced = @('calico', 'cilium', 'kindnet', 'antrea', 'weave', 'canal', 'kube-router', 'ovn', 'anetd', 'azure-npm', 'aws-node')
$NotStarting = '(ErrImage[A-Za-z]*|ImagePullBackOff|InvalidImageName|CreateContainer[A-Za-z]*Error|RunContainerError|' +
    'CrashLoopBackOff|Unschedulable).*'

# ---------------------------------------------------------------------------------------------------- options

# A variable of the environment, or what stands for it.
function Get-Setting {
    param([string] $Name, [string] $Default = '')
    $value = [Environment]::GetEnvironmentVariable($Name)
    if ([string]::IsNullOrEmpty($value)) { return $Default }
    return $value
}

# The folder of this file, behind symbolic links.
function Get-Root {
    $target = (Get-Item -LiteralPath $PSCommandPath).ResolveLinkTarget($true)
    if ($null -eq $target) { return $PSScriptRoot }
    return $target.DirectoryName
}

# What was asked for, and what happens on the way, for Complete-Deployment and the report.
$Run = [pscustomobject]@{
    Verb = $Verb.ToLowerInvariant(); Environment = $Env; Context = $Context; Namespace = $Namespace
    Registry = $Registry -replace '/$', ''; Image = $Image; Tag = $Tag; Target = $Target; With = $With -join ','
    Severity = $Severity -join ','; ToRevision = $ToRevision; Timeout = $Timeout
    SkipBuild = [bool] $SkipBuild; SkipScan = [bool] $SkipScan; DryRun = [bool] $WhatIfPreference
    NoRollback = [bool] $NoRollback; Yes = [bool] $Yes; Json = [bool] $Json
    ContextGiven = '' -ne $Context; NamespaceGiven = '' -ne $Namespace
    PollS = [double] (Get-Setting -Name 'DEPLOY_POLL_S' -Default '1')
    StuckS = [double] (Get-Setting -Name 'DEPLOY_STUCK_S' -Default '30')
    SmokeS = [double] (Get-Setting -Name 'DEPLOY_SMOKE_S' -Default '60')
    Docker = Get-Setting -Name 'DOCKER' -Default 'docker'; Trivy = Get-Setting -Name 'TRIVY_IMAGE' -Default $TrivyDefault
    Root = Get-Root; Temp = ''; Clock = [Diagnostics.Stopwatch]::StartNew(); Encoding = $null
    Out = $null; Terminal = $true; Bold = ''; Red = ''; Green = ''; Yellow = ''; Plain = ''
    Stage = 'preflight'; Reason = ''; Code = 0; Ended = $false; Interrupted = 0; Ending = ''; Heard = 0
    Applied = $false; LockSince = ''; Rollback = 'none'; Reached = $false; Holder = ''; Now = ''; NowS = [long] 0
    Revision = ''; Previous = ''; Deployed = ''; Digest = ''; ImageId = ''; Commit = ''; Clean = $false; Url = ''
    Model = ''; ModelDigest = ''; Repository = ''; TrackingDigest = ''; Found = ''; Port = ''; Retry = $false; Stuck = [double] -1
    LiveImage = ''; LiveCommit = ''; Pod = ''; Progress = ''; Scans = ''; Reports = ''
    Status = 0; Answer = ''; Why = ''; Body = ''
    Table = [Collections.Generic.List[object]]::new(); Objects = @()
    Children = [Collections.Generic.List[object]]::new()
    Cluster = @('kubectl') # for files, whose objects name their namespace
    Here = @('kubectl') # for everything else
}
$WhatIfPreference = $false # from here on it would only keep the temporary folder from being made

# Ends with 2.
function Exit-Usage {
    param([string] $Reason)
    $Run.Reason = $Reason
    $Run.Stage = 'usage'
    $Run.Code = 2
    [Console]::Error.WriteLine("deploy.ps1: $Reason")
    [Console]::Error.WriteLine('Try Get-Help ./deploy.ps1 -Full.')
    throw $Reason
}

# Refuses a value that does not look as it must.
function Assert-Like {
    param([string] $Option, [string] $Value, [string] $Pattern)
    if ($Value -cnotmatch $Pattern) { Exit-Usage -Reason "$Option ${Value}: must look like $Pattern" }
}

# Checks what was asked for.
function Initialize-Option {
    param([Collections.IDictionary] $Given, [string[]] $Unknown)
    $name = '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$'
    $image = '^[A-Za-z0-9][A-Za-z0-9._/:@-]*$'
    $number = '^[1-9][0-9]{0,5}$'
    $patterns = [ordered]@{
        Env = '^(local|staging|production)$'; Context = '.'; Namespace = $name; Registry = $image; Image = $image
        Tag = '^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$'
        Target = '^(auto|kind|k3d|minikube|docker-desktop|registry|ctr)$'; With = '^[a-z0-9-]+(,[a-z0-9-]+)*$'
        Severity = '^[A-Z]+(,[A-Z]+)*$'; ToRevision = $number; Timeout = $number
    }
    if ($Run.Verb -cnotmatch '^(up|status|rollback|smoke|doctor|down)$') {
        Exit-Usage -Reason ("$($Run.Verb): there is no such verb; " +
            'a verb comes first and is one of up, status, rollback, smoke, doctor, down')
    }
    if ($Unknown.Count -gt 0) { Exit-Usage -Reason "$($Unknown -join ' '): there is no such option" }
    foreach ($option in $patterns.Keys) {
        if (-not $Given.ContainsKey($option)) { continue }
        $value = @($Given[$option]) -join ','
        if ($value -eq '') { Exit-Usage -Reason "-${option}: empty" }
        Assert-Like -Option "-$option" -Value $value -Pattern $patterns[$option]
    }
    $Run.Timeout = [int] $Run.Timeout
    Assert-Combination
}

# Refuses options that do not go together.
function Assert-Combination {
    if ($Run.ToRevision -ne '' -and $Run.Verb -ne 'rollback') { Exit-Usage -Reason '-ToRevision: only for rollback' }
    if ($Run.DryRun -and $Run.Verb -ne 'up') { Exit-Usage -Reason '-WhatIf: only for up' }
    if ($Run.Image -ne '' -and $Run.Tag -ne '') {
        Exit-Usage -Reason '-Tag: not together with -Image, which names its own'
    }
    if ($Run.With.Split(',') -contains 'argocd') {
        Exit-Usage -Reason '-With argocd: that component is for Argo CD to apply (k8s/README.md)'
    }
    if ($Run.Target -eq 'registry' -and $Run.Registry -eq '' -and $Run.Image -eq '') {
        Exit-Usage -Reason '-Target registry: needs -Registry HOST[:PORT][/PATH]'
    }
}

# ---------------------------------------------------------------------------------------------------- speaking

# Colours where somebody looks on; with -Json, all that is said goes to stderr.
function Initialize-Output {
    try {
        $Run.Encoding = [Console]::OutputEncoding
        [Console]::OutputEncoding = [Text.UTF8Encoding]::new($false)
    } catch {
        Write-Verbose -Message "No console: $($_.Exception.Message)"
    }
    $Run.Out = [Console]::Out
    $redirected = [Console]::IsOutputRedirected
    if ($Run.Json) {
        $Run.Out = [Console]::Error
        $redirected = [Console]::IsErrorRedirected
    }
    $Run.Terminal = -not $redirected
    if ($redirected -or (Get-Setting -Name 'NO_COLOR') -ne '' -or (Get-Setting -Name 'TERM') -eq 'dumb') { return }
    $escape = [char] 27
    $Run.Bold = "${escape}[1m"
    $Run.Red = "${escape}[31m"
    $Run.Green = "${escape}[32m"
    $Run.Yellow = "${escape}[33m"
    $Run.Plain = "${escape}[0m"
}

function Write-Line {
    param([string] $Text = '')
    $Run.Out.WriteLine($Text)
}

function Write-Note {
    param([string] $Text)
    Write-Line -Text "  $Text"
}

function Write-Pass {
    param([string] $Text)
    Write-Line -Text "  $($Run.Green)ok$($Run.Plain)    $Text"
}

# Lines of a program's, set off.
function Write-Quote {
    param([string] $Text)
    if ($Text -eq '') { return }
    foreach ($line in $Text.Split("`n")) { Write-Line -Text "  | $line" }
}

# What fails or threatens to, in colour and not to be overlooked.
function Write-Alarm {
    param([string] $Text)
    [Console]::Error.WriteLine("$($Run.Red)$Text$($Run.Plain)")
}

function Get-Second {
    return [Math]::Floor($Run.Clock.Elapsed.TotalSeconds)
}

function Get-Elapsed {
    return '{0:d}:{1:d2}' -f [int] [Math]::Floor((Get-Second) / 60), [int] ((Get-Second) % 60)
}

function Enter-Stage {
    param([string] $Name)
    $Run.Stage = $Name
    Write-Line
    Write-Line -Text "$($Run.Bold)== $Name$($Run.Plain)  ($(Get-Elapsed))"
}

# The exit code if the stage fails.
function Get-StageCode {
    if ($StageCode.ContainsKey($Run.Stage)) { return $StageCode[$Run.Stage] }
    return 10
}

# Ends with the code of the stage; Complete-Deployment does the rest.
function Exit-Stage {
    param([string] $Reason)
    $Run.Reason = $Reason
    $Run.Code = Get-StageCode
    Write-Alarm -Text "FAIL  $($Run.Stage): $Reason"
    throw $Reason
}

# A command as it could be typed in this folder, but for the temporary one.
function Write-Announcement {
    param([string[]] $Command)
    $words = foreach ($word in $Command) {
        foreach ($folder in @($Run.Temp, $Run.Root)) {
            $start = $folder + [IO.Path]::DirectorySeparatorChar
            if ($folder -ne '' -and $word.StartsWith($start)) { $word = $word.Substring($start.Length) }
        }
        if ($word -match '^[A-Za-z0-9_./:=+\\-]+$') { $word } else { "'" + $word.Replace("'", "''") + "'" }
    }
    Write-Line -Text "  `$ $($words -join ' ')"
}

# The one object of -Json.
function Write-Report {
    param([int] $Code)
    if (-not $Run.Json) { return }
    $report = [ordered]@{
        code = $Code; duration_s = [int] (Get-Second); verb = $Run.Verb; stage = $Run.Stage; reason = $Run.Reason
        image = $Run.Deployed; digest = $Run.Digest; commit = $Run.Commit; namespace = $Run.Namespace
        context = $Run.Context; revision = $Run.Revision; rollback = $Run.Rollback; url = $Run.Url
    }
    [Console]::Out.WriteLine((ConvertTo-Json -InputObject $report -Compress))
}

# ---------------------------------------------------------------------------------------------------- running

$SignalSource = @'
using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;

namespace MlflowLive
{
    public static class Signal
    {
        public static volatile int Count;
        public static volatile int Code;
        public static volatile string Name = "";
        private static readonly List<IDisposable> watches = new List<IDisposable>();

        public static void Watch()
        {
            Count = 0;
            On(PosixSignal.SIGINT, 130);
            On(PosixSignal.SIGTERM, 143);
            On(PosixSignal.SIGHUP, 143);
        }

        private static void On(PosixSignal signal, int code)
        {
            watches.Add(PosixSignalRegistration.Create(signal, context =>
            {
                context.Cancel = true;
                Code = code;
                Name = signal.ToString();
                Count = Count + 1;
            }));
        }

        public static void Forget()
        {
            foreach (IDisposable watch in watches) { watch.Dispose(); }
            watches.Clear();
        }
    }
}
'@

# What counts the signals, or $null where this PowerShell may compile nothing: then only Ctrl+C is heard.
function Get-SignalType {
    return 'MlflowLive.Signal' -as [type]
}

# Signals are counted, because by themselves SIGTERM and SIGHUP would end PowerShell without its `finally`. They are answered
# between two commands; Ctrl+C, which reaches the command as well, at once.
function Watch-Signal {
    try {
        if ($null -eq (Get-SignalType)) { Add-Type -TypeDefinition $SignalSource }
    } catch {
        Write-Verbose -Message "Only Ctrl+C is heard: $($_.Exception.Message)"
        return
    }
    (Get-SignalType)::Watch()
}

# Ends after a signal; while it is ending already, a second one only stops the waiting.
function Assert-Uninterrupted {
    $signal = Get-SignalType
    if ($null -eq $signal -or $signal::Count -eq 0) { return }
    if ($Run.Ending -ne '') {
        if ($signal::Count -gt $Run.Heard) { $Run.Ending = 'twice' }
        return
    }
    $Run.Interrupted = $signal::Code
    $Run.Reason = "interrupted ($($signal::Name)) during $($Run.Stage)"
    throw $Run.Reason
}

function Wait-Moment {
    param([double] $Seconds)
    Start-Sleep -Milliseconds ([int] ($Seconds * 1000))
    Assert-Uninterrupted
}

# One line of a program's, of either stream.
function ConvertTo-Text {
    param([object] $Line)
    if ($Line -is [Management.Automation.ErrorRecord]) { return $Line.Exception.Message }
    return [string] $Line
}

# Runs a program; $Each gets its lines, those of stderr as error records. True if it ends with 0.
function Invoke-Native {
    param([string[]] $Command, [scriptblock] $Each)
    $program = $Command[0]
    $arguments = @($Command | Select-Object -Skip 1)
    try {
        & $program @arguments 2>&1 | ForEach-Object -Process $Each
        $Run.Status = $LASTEXITCODE
    } catch [Management.Automation.CommandNotFoundException] {
        $Run.Status = 127
        $_ | ForEach-Object -Process $Each
    }
    Assert-Uninterrupted
    return $Run.Status -eq 0
}

# Announced, with its output.
function Invoke-Announced {
    param([string[]] $Command)
    Write-Announcement -Command $Command
    return Invoke-Native -Command $Command -Each { Write-Line -Text (ConvertTo-Text -Line $_) }
}

# Quietly: $Run.Answer is what it prints; on failure $Run.Why is its last complaint.
function Invoke-Quiet {
    param([string[]] $Command)
    $lines = [Collections.Generic.List[string]]::new()
    $complaints = [Collections.Generic.List[string]]::new()
    $Run.Answer = ''
    $Run.Why = ''
    $done = Invoke-Native -Command $Command -Each {
        if ($_ -is [Management.Automation.ErrorRecord]) {
            $complaints.Add($_.Exception.Message)
        } else {
            $lines.Add([string] $_)
        }
    }
    if ($done) { $Run.Answer = $lines -join "`n" } else { $Run.Why = Get-Complaint -Line $complaints }
    return $done
}

# Its output where someone looks on; else quiet, and the end of it when it fails.
function Invoke-Long {
    param([string] $What, [string[]] $Command)
    if ($Run.Terminal) { return Invoke-Announced -Command $Command }
    Write-Announcement -Command $Command
    $lines = [Collections.Generic.List[string]]::new()
    $label = "${What}:"
    $started = Get-Second
    $next = $started + 30
    $done = Invoke-Native -Command $Command -Each {
        $lines.Add((ConvertTo-Text -Line $_))
        if ((Get-Second) -ge $next) {
            Write-Note -Text "$label $((Get-Second) - $started) s"
            $next = (Get-Second) + 30
        }
    }
    if (-not $done) {
        foreach ($line in ($lines | Select-Object -Last 60)) { [Console]::Error.WriteLine("  | $line") }
    }
    return $done
}

# The line that says what went wrong.
function Get-Complaint {
    param([string[]] $Line)
    $telling = @($Line | Where-Object -FilterScript { $_ -notmatch '^E[0-9]' -and $_ -notmatch '^Warning:' -and $_ -match '\S' })
    if ($telling.Count -gt 0) { return $telling[-1] }
    if ($null -ne $Line -and $Line.Count -gt 0 -and $Line[-1] -ne '') { return $Line[-1] }
    return 'no message'
}

# Runs a script with variables of the environment, which are taken back.
function Use-Environment {
    param([hashtable] $Variable, [scriptblock] $Script)
    $before = @{}
    try {
        foreach ($name in $Variable.Keys) {
            $before[$name] = [Environment]::GetEnvironmentVariable($name)
            [Environment]::SetEnvironmentVariable($name, $Variable[$name])
        }
        & $Script
    } finally {
        foreach ($name in $before.Keys) {
            if ($null -eq $before[$name]) {
                [Environment]::SetEnvironmentVariable($name, [NullString]::Value) # $null would set it to nothing
            } else {
                [Environment]::SetEnvironmentVariable($name, $before[$name])
            }
        }
    }
}

# In the namespace; see Invoke-Quiet.
function Invoke-Kubectl {
    param([string[]] $Argument)
    return Invoke-Quiet -Command ($Run.Here + @('--request-timeout=20s') + $Argument)
}

# What the cluster has, as nested tables; $null, and $Run.Why, if it cannot be had.
function Get-Resource {
    param([string[]] $Argument)
    if (-not (Invoke-Kubectl -Argument ($Argument + @('-o', 'json')))) { return $null }
    return ConvertFrom-Json -InputObject $Run.Answer -AsHashtable
}

# A value of nested tables, or the default.
function Get-Field {
    param([object] $From, [string[]] $Path, [object] $Default = '')
    $value = $From
    foreach ($name in $Path) {
        if ($value -isnot [Collections.IDictionary] -or -not $value.Contains($name)) { return $Default }
        $value = $value[$name]
    }
    if ($null -eq $value) { return $Default }
    return $value
}

# The members of a list in nested tables, one by one; none if it is not there.
function Get-Element {
    param([object] $From, [string[]] $Path)
    return Get-Field -From $From -Path $Path -Default @()
}

# The member of a list that has this name or type.
function Find-Element {
    param([object] $From, [string[]] $Path, [string] $Key, [string] $Value)
    foreach ($member in (Get-Element -From $From -Path $Path)) {
        if ((Get-Field -From $member -Path $Key) -eq $Value) { return $member }
    }
    return $null
}

# Ends every process of the background.
function Close-Child {
    foreach ($child in $Run.Children) {
        try {
            if (-not $child.HasExited) { $child.Kill($true) }
            $null = $child.WaitForExit(5000)
        } catch {
            Write-Verbose -Message "It had ended: $($_.Exception.Message)"
        }
        $child.Dispose()
    }
    $Run.Children.Clear()
}

# ---------------------------------------------------------------------------------------------------- checkout and overlay

# A path in the temporary folder.
function Get-TempPath {
    param([string] $Name)
    return Join-Path -Path $Run.Temp -ChildPath $Name
}

# A file of UTF-8 with the line ends of Linux, whatever the system.
function Write-Text {
    param([string] $Path, [string] $Text)
    [IO.File]::WriteAllText($Path, $Text)
}

function Read-Text {
    param([string] $Path)
    return [IO.File]::ReadAllText($Path)
}

# The lines of a text.
function Split-Line {
    param([string] $Text)
    return $Text -split '\r?\n'
}

# A line that git answers; '' and $Run.Why if it does not.
function Get-GitLine {
    param([string[]] $Argument)
    if (-not (Invoke-Quiet -Command (@('git') + $Argument))) { return '' }
    return $Run.Answer.Trim()
}

# The tree of the work tree as it is; the index and the objects of the checkout stay untouched.
function Get-WorkTree {
    $index = Get-GitLine -Argument @('rev-parse', '--git-path', 'index')
    $objects = (Resolve-Path -LiteralPath (Get-GitLine -Argument @('rev-parse', '--git-path', 'objects'))).ProviderPath
    $null = New-Item -ItemType Directory -Force -Path (Get-TempPath -Name 'objects')
    if (Test-Path -LiteralPath $index) { Copy-Item -LiteralPath $index -Destination (Get-TempPath -Name 'index') -Force }
    $apart = @{
        GIT_INDEX_FILE = Get-TempPath -Name 'index'
        GIT_OBJECT_DIRECTORY = Get-TempPath -Name 'objects'
        GIT_ALTERNATE_OBJECT_DIRECTORIES = $objects
    }
    return Use-Environment -Variable $apart -Script {
        if (Invoke-Quiet -Command @('git', 'add', '-A', '.')) { Get-GitLine -Argument @('write-tree') }
    }
}

# Commit, Clean and Tag, of the tree as it is; false if there is no checkout.
function Read-Checkout {
    $head = Get-GitLine -Argument @('rev-parse', 'HEAD')
    if ($head -eq '') { return $false }
    $tree = [string] (Get-WorkTree)
    if ($tree -eq '') { return $false }
    $Run.Commit = $head
    $Run.Clean = $true
    $tag = $head.Substring(0, 12)
    if ($tree -ne (Get-GitLine -Argument @('rev-parse', 'HEAD^{tree}'))) {
        $Run.Commit = "$head-dirty"
        $Run.Clean = $false
        $tag = "$tag-dirty.$($tree.Substring(0, 12))"
    }
    if ((Get-Setting -Name 'NATIVE' -Default '0') -eq '1') { $tag = "$tag-native" }
    if ($Run.Tag -eq '') { $Run.Tag = $tag }
    return $true
}

function Get-AppVersion {
    $text = Read-Text -Path (Join-Path -Path $Run.Root -ChildPath 'pyproject.toml')
    return [regex]::Match($text, '(?m)^version = "(.*)"').Groups[1].Value
}

# Components that -With names.
function Get-Component {
    if ($Run.With -eq '') { return @() }
    return $Run.With.Split(',')
}

# Writes the manifests; $Addition is more of the kustomization. Kustomize takes no absolute paths, so it gets a copy of k8s.
function Export-Overlay {
    param([string] $Path, [string] $Addition = '')
    $overlay = Get-TempPath -Name 'overlay'
    if (-not (Test-Path -LiteralPath $overlay)) {
        $null = New-Item -ItemType Directory -Path $overlay
        Copy-Item -LiteralPath (Join-Path -Path $Run.Root -ChildPath 'k8s') -Destination $overlay -Recurse
    }
    $components = @(foreach ($component in (Get-Component)) { "`"k8s/components/$component`"" })
    $lines = @(
        'apiVersion: kustomize.config.k8s.io/v1beta1'
        'kind: Kustomization'
        "resources: [`"k8s/overlays/$($Run.Environment)`"]"
        "components: [$($components -join ', ')]"
    )
    if ($Run.NamespaceGiven) { $lines += "namespace: `"$($Run.Namespace)`"" }
    Write-Text -Path (Join-Path -Path $overlay -ChildPath 'kustomization.yaml') -Text (($lines + $Addition) -join "`n")
    $done = Invoke-Quiet -Command @('kubectl', 'kustomize', '--load-restrictor', 'LoadRestrictionsNone', $overlay)
    if ($done) { Write-Text -Path $Path -Text "$($Run.Answer)`n" }
    return $done
}

# What the release adds to the overlay. The cause is as deploy.sh writes it, so that each finds unchanged what the other did.
function Get-Release {
    $pinned = "newTag: `"$($Run.Tag)`""
    $trackingPinned = $pinned
    if ($Run.Digest -ne '') { $pinned = "digest: `"$($Run.Digest)`"" }
    if ($Run.TrackingDigest -ne '') { $trackingPinned = "digest: `"$($Run.TrackingDigest)`"" }
    return @"
images:
  - {name: $App, newName: "$($Run.Repository)", $pinned}
  - {name: $App-mlflow, newName: "$($Run.Repository)-mlflow", $trackingPinned}
patches:
  - target: {kind: Deployment, name: $App}
    patch: |-
      apiVersion: apps/v1
      kind: Deployment
      metadata:
        name: $App
        annotations:
          $App/commit: "$($Run.Commit)"
          kubernetes.io/change-cause: "deploy.sh: commit $($Run.Commit) ($($Run.Environment))"

"@
}

# The release's manifests, in release.yaml.
function Export-Release {
    $done = Export-Overlay -Path (Get-TempPath -Name 'release.yaml') -Addition (Get-Release)
    if (-not $done) { Exit-Stage -Reason "the release does not render: $($Run.Why)" }
}

# The documents of manifests, each as its text.
function Split-Document {
    param([string] $Text)
    return @($Text -split '(?m)^---.*$' | Where-Object -FilterScript { $_ -match '(?m)^kind: ' })
}

# The value of a line like "  name: value" in a text; '' if there is none.
function Get-LineValue {
    param([string] $Text, [string] $Name)
    return [regex]::Match($Text, "(?m)^${Name}: *(\S+)").Groups[1].Value
}

# Kind, Api, Name and Space of each object in the manifests.
function Get-ManifestObject {
    param([string] $Text)
    foreach ($document in (Split-Document -Text $Text)) {
        $metadata = [regex]::Match($document, '(?m)^metadata:\r?\n((?:[ ].*(?:\r?\n|$))*)').Value
        [pscustomobject]@{
            Kind = Get-LineValue -Text $document -Name 'kind'
            Api = Get-LineValue -Text $document -Name 'apiVersion'
            Name = Get-LineValue -Text $metadata -Name '  name'
            Space = Get-LineValue -Text $metadata -Name '  namespace'
        }
    }
}

# Name and Optional of each Secret that a workload reads.
function Get-SecretNeed {
    param([string] $Text)
    $needs = @{}
    foreach ($document in (Split-Document -Text $Text)) {
        $kind = Get-LineValue -Text $document -Name 'kind'
        if ($kind -cnotmatch '^(Deployment|StatefulSet|Job|CronJob|DaemonSet)$') { continue }
        $lines = @(Split-Line -Text $document)
        for ($at = 0; $at -lt $lines.Count; $at++) {
            if ($lines[$at] -notmatch '^ *(- )?(secretKeyRef|secretRef|secret):') { continue }
            $block = Get-Block -Line $lines -At $at
            $name = [regex]::Match($block, '(?m)^ *(?:- )?(?:name|secretName): *"?([^"\s]+)').Groups[1].Value
            $optional = $block -match '(?m)^ *optional: true'
            if ($name -ne '') { $needs["$optional $name"] = [pscustomobject]@{ Name = $name; Optional = $optional } }
        }
    }
    return @($needs.Values | Sort-Object -Property @('Name', 'Optional'))
}

# The lines below line $At that belong to it.
function Get-Block {
    param([string[]] $Line, [int] $At)
    $depth = Measure-Indent -Line $Line[$At]
    $block = for ($next = $At + 1; $next -lt $Line.Count; $next++) {
        if ((Measure-Indent -Line $Line[$next]) -le $depth) { break }
        $Line[$next]
    }
    return @($block) -join "`n"
}

function Measure-Indent {
    param([string] $Line)
    return [regex]::Match($Line, '^[ -]*').Length
}

# The objects of the overlay that are of this kind.
function Select-Kind {
    param([string] $Kind)
    return @($Run.Objects | Where-Object -FilterScript { $_.Kind -eq $Kind })
}

# Whether an object of this kind is in the overlay.
function Test-Rendered {
    param([string] $Kind)
    return (@(Select-Kind -Kind $Kind)).Count -gt 0
}

function Test-TrackingNeed {
    return (Get-Plain) -match "(?m)^ *(- )?image: `"?$App-mlflow([:@`"\s]|`$)"
}

# The manifests without what the release adds.
function Get-Plain {
    return Read-Text -Path (Get-TempPath -Name 'plain.yaml')
}

# ---------------------------------------------------------------------------------------------------- preflight

# A row of the table: ok, warn or FAIL.
function Add-Row {
    param([string] $Status, [string] $Check, [string] $Found, [string] $Mend = '')
    $Run.Table.Add([pscustomobject]@{ Status = $Status; Check = $Check; Found = $Found; Mend = $Mend })
}

function Show-Table {
    $width = 5
    $wide = 5
    foreach ($row in $Run.Table) {
        $width = [Math]::Max($width, $row.Check.Length)
        $wide = [Math]::Max($wide, $row.Found.Length)
    }
    $wide = [Math]::Min($wide, 60)
    Write-Line -Text "        $('check'.PadRight($width))  $('found'.PadRight($wide))  needed, or how to mend it"
    foreach ($row in $Run.Table) {
        $colour = @{ ok = $Run.Green; warn = $Run.Yellow; FAIL = $Run.Red }[$row.Status]
        $status = "$colour$($row.Status.PadRight(4))$($Run.Plain)"
        Write-Line -Text "  $status  $($row.Check.PadRight($width))  $($row.Found.PadRight($wide))  $($row.Mend)"
    }
}

function Get-FirstNumber {
    param([string] $Text)
    return [regex]::Match($Text, '[0-9][0-9.]*').Value
}

function Get-ToolVersion {
    param([string] $Name)
    $command = @($Name, '--version')
    if ($Name -eq 'kubectl') { $command = @('kubectl', 'version', '--client') }
    $version = ''
    if (Invoke-Quiet -Command $command) { $version = Get-FirstNumber -Text (@(Split-Line -Text $Run.Answer)[0]) }
    if ($version -eq '') { return 'found' }
    return $version
}

# Whether the program is there; never an alias, such as diff is of Compare-Object.
function Test-Tool {
    param([string] $Name)
    return $null -ne (Get-Command -Name $Name -CommandType @('Application', 'Function') -ErrorAction SilentlyContinue)
}

# Whether the verb brings a release.
function Test-Release {
    return $Run.Verb -eq 'up' -or $Run.Verb -eq 'doctor'
}

function Test-Building {
    return (Test-Release) -and -not $Run.SkipBuild -and $Run.Image -eq ''
}

function Test-Scanning {
    return (Test-Release) -and -not $Run.SkipScan
}

function Test-Loading {
    return $Run.Image -eq '' -and $Run.Target -ne 'registry'
}

function Confirm-Tool {
    Add-Row -Status 'ok' -Check 'pwsh' -Found "$($PSVersionTable.PSVersion)"
    foreach ($tool in @('kubectl', 'git', 'diff')) {
        if (Test-Tool -Name $tool) {
            Add-Row -Status 'ok' -Check $tool -Found (Get-ToolVersion -Name $tool)
        } elseif ($tool -eq 'diff' -and (Test-Tool -Name 'git')) {
            Add-Row -Status 'ok' -Check $tool -Found 'git diff --no-index'
        } else {
            Add-Row -Status 'FAIL' -Check $tool -Found 'missing' -Mend "install $tool; everything needs it"
        }
    }
    foreach ($tool in @('kind', 'k3d', 'minikube')) {
        if ($Run.Target -ne $tool -or $Run.Image -ne '') { continue }
        if (Test-Tool -Name $tool) {
            Add-Row -Status 'ok' -Check $tool -Found 'found'
        } else {
            Add-Row -Status 'FAIL' -Check $tool -Found 'missing' -Mend "install $tool, or say -Registry HOST[:PORT][/PATH]"
        }
    }
}

function Confirm-Docker {
    $scanner = (Test-Scanning) -and -not (Test-Tool -Name 'trivy')
    if (-not (Test-Building) -and -not ((Test-Loading) -and (Test-Release)) -and -not $scanner) { return }
    if (-not (Test-Tool -Name $Run.Docker)) {
        Add-Row -Status 'FAIL' -Check 'docker' -Found 'missing' `
            -Mend 'install Docker, or deploy an image that is there: -Image REF -SkipScan'
        return
    }
    if (Invoke-Quiet -Command @($Run.Docker, 'version', '--format', '{{.Client.Version}}, engine {{.Server.Version}}')) {
        Add-Row -Status 'ok' -Check 'docker' -Found $Run.Answer
    } else {
        Add-Row -Status 'FAIL' -Check 'docker' -Found 'no engine' -Mend "start Docker ($($Run.Why))"
    }
    if (-not (Test-Building)) { return }
    if (Invoke-Quiet -Command @($Run.Docker, 'buildx', 'version')) {
        Add-Row -Status 'ok' -Check 'buildx' -Found (Get-FirstNumber -Text $Run.Answer)
    } else {
        Add-Row -Status 'warn' -Check 'buildx' -Found 'missing' `
            -Mend 'without it the build is slower, and -SkipBuild cannot resolve tags: install docker-buildx'
    }
}

function Confirm-Disk {
    if (-not (Test-Building)) { return }
    $where = ''
    if (Invoke-Quiet -Command @($Run.Docker, 'info', '--format', '{{.DockerRootDir}}')) { $where = $Run.Answer.Trim() }
    if ($where -eq '' -or -not (Test-Path -LiteralPath $where)) { $where = $Run.Temp } # the engine's disk is another machine's
    $free = [long] ([IO.DriveInfo]::new($where).AvailableFreeSpace / 1048576)
    if ($free -lt $DiskMB / 5) {
        Add-Row -Status 'FAIL' -Check 'disk' -Found "$free MB free" -Mend "$DiskMB MB: docker system prune"
    } elseif ($free -lt $DiskMB) {
        Add-Row -Status 'warn' -Check 'disk' -Found "$free MB free" `
            -Mend "$DiskMB MB if nothing is cached: docker system prune"
    } else {
        Add-Row -Status 'ok' -Check 'disk' -Found "$free MB free"
    }
}

function Confirm-Checkout {
    if (-not (Test-Release)) { return }
    if ($Run.Image -ne '') {
        Add-Row -Status 'ok' -Check 'image' -Found $Run.Image
        return
    }
    if ((Test-Tool -Name 'git') -and (Read-Checkout)) {
        Add-Row -Status 'ok' -Check 'commit' -Found $Run.Tag
    } elseif ($Run.Tag -ne '') {
        $Run.Commit = 'unknown'
        Add-Row -Status 'warn' -Check 'commit' -Found 'no git checkout' -Mend 'the image will not know its commit'
    } else {
        Add-Row -Status 'FAIL' -Check 'commit' -Found $Run.Why -Mend 'clone it with git, or give -Tag'
    }
    foreach ($name in @('golden.request.json', 'golden.expected')) {
        $file = Get-Item -LiteralPath (Get-SmokePath -Name $name) -ErrorAction SilentlyContinue
        if ($null -ne $file -and $file.Length -gt 0) { continue }
        Add-Row -Status 'FAIL' -Check 'smoke files' -Found 'missing' `
            -Mend 'k8s/smoke has golden.request.json, golden.expected and bad.request.json'
        return
    }
}

function Confirm-Overlay {
    $folder = Join-Path -Path $Run.Root -ChildPath 'k8s/components'
    foreach ($component in (Get-Component)) {
        if (Test-Path -LiteralPath (Join-Path -Path $folder -ChildPath $component)) { continue }
        $folders = Get-ChildItem -LiteralPath $folder -Directory | Sort-Object -Property 'Name'
        $names = @($folders | ForEach-Object -MemberName 'Name')
        Add-Row -Status 'FAIL' -Check 'overlay' -Found "no component $component" -Mend "-With: $($names -join ' ')"
    }
    if (-not (Export-Overlay -Path (Get-TempPath -Name 'plain.yaml'))) {
        Add-Row -Status 'FAIL' -Check 'overlay' -Found 'does not render' -Mend $Run.Why
        return
    }
    $Run.Objects = @(Get-ManifestObject -Text (Get-Plain))
    if ($Run.Namespace -eq '') {
        $Run.Namespace = $App
        foreach ($deployment in (Select-Kind -Kind 'Deployment')) {
            if ($deployment.Name -eq $App -and $deployment.Space -ne '') { $Run.Namespace = $deployment.Space }
        }
    }
    $Run.Here = $Run.Cluster + @('--namespace', $Run.Namespace)
    $with = if ($Run.With -ne '') { " with $($Run.With)" } else { '' }
    Add-Row -Status 'ok' -Check 'overlay' -Found "$($Run.Environment)${with}: $($Run.Objects.Count) objects"
    if ($Run.Image -ne '' -and (Test-TrackingNeed)) {
        Add-Row -Status 'FAIL' -Check 'image' -Found $Run.Image `
            -Mend "component mlflow needs $App-mlflow too: build both (no -Image), or leave it out of -With"
    }
}

function Test-LocalContext {
    param([string] $Server)
    $names = '^(kind-.*|k3d-.*|minikube|docker-desktop|docker-for-desktop|rancher-desktop|colima.*|orbstack)$'
    if ($Run.Context -cmatch $names) { return $true }
    $address = $Server -replace '^.*?://', ''
    return $address -match '^(localhost($|[:/])|127\.|\[::1\]|kubernetes\.docker\.internal|host\.docker\.internal)'
}

# Context, Cluster and, if auto, Target.
function Select-Context {
    if ($Run.Context -eq '' -and (Invoke-Quiet -Command @('kubectl', 'config', 'current-context'))) {
        $Run.Context = $Run.Answer.Trim()
    }
    if ($Run.Context -ne '') { $Run.Cluster = @('kubectl', '--context', $Run.Context) }
    $Run.Here = $Run.Cluster
    if ($Run.Target -ne 'auto') { return }
    $Run.Target = 'registry'
    if ($Run.Registry -ne '' -or $Run.Image -ne '') { return }
    $Run.Target = switch -Regex -CaseSensitive ($Run.Context) {
        '^kind-' { 'kind'; break }
        '^k3d-' { 'k3d'; break }
        '^minikube$' { 'minikube'; break }
        '^(docker-desktop|docker-for-desktop|rancher-desktop|colima.*|orbstack)$' { 'docker-desktop'; break }
        default { 'registry' }
    }
}

# Whether the context may be used; says so in the table if not.
function Confirm-Context {
    param([string] $Server)
    $named = if ($Run.Context -ne '') { $Run.Context } else { 'none' }
    if ($Run.ContextGiven -and $Server -eq '') {
        $null = Invoke-Quiet -Command @('kubectl', 'config', 'get-contexts', '-o', 'name')
        $contexts = @(Split-Line -Text $Run.Answer) -join ' '
        Add-Row -Status 'FAIL' -Check 'context' -Found "$($Run.Context) does not exist" -Mend "one of: $contexts"
        return $false
    }
    $meant = $Run.ContextGiven -or $Run.Yes -or $Run.DryRun -or $Run.Verb -eq 'doctor' -or $Run.Verb -eq 'status'
    if ($meant -or (Test-LocalContext -Server $Server)) { return $true }
    $address = if ($Server -ne '') { $Server } else { 'no server' }
    $name = if ($Run.Context -ne '') { $Run.Context } else { 'NAME' }
    Add-Row -Status 'FAIL' -Check 'context' -Found "$named is not local: $address" `
        -Mend "say -Context $name, or -Yes, if you mean it"
    return $false
}

# Reached is set if it answers.
function Confirm-Cluster {
    $server = ''
    $asked = $Run.Cluster + @('config', 'view', '--minify', '-o', 'jsonpath={.clusters[0].cluster.server}')
    if (Invoke-Quiet -Command $asked) { $server = $Run.Answer.Trim() }
    if (-not (Confirm-Context -Server $server)) { return }
    $version = Get-Resource -Argument @('version')
    $client = Get-MinorVersion -Version $version -Of 'clientVersion'
    $theirs = Get-MinorVersion -Version $version -Of 'serverVersion'
    if ($theirs -eq '') {
        $status = if ($Run.DryRun) { 'warn' } else { 'FAIL' }
        $silent = if ($Run.Context -ne '') { "$($Run.Context) does not answer" } else { 'none' }
        $why = if ($Run.Why -ne '') { $Run.Why } else { 'no server' }
        Add-Row -Status $status -Check 'context' -Found $silent `
            -Mend "start a cluster, or choose another (-Context): $why"
        return
    }
    $Run.Reached = $true
    $named = if ($Run.Context -ne '') { $Run.Context } else { 'in-cluster' }
    $at = if ($server -ne '') { " at $server" } else { '' }
    Add-Row -Status 'ok' -Check 'context' -Found "$named$at"
    if ([Math]::Abs([int] $client.Split('.')[1] - [int] $theirs.Split('.')[1]) -le 1) {
        Add-Row -Status 'ok' -Check 'kubectl, cluster' -Found "$client, $theirs"
    } else {
        Add-Row -Status 'warn' -Check 'kubectl, cluster' -Found "$client, $theirs" `
            -Mend "versions one minor apart are supported: install kubectl $theirs"
    }
}

# "1.36", out of the answer to `kubectl version`.
function Get-MinorVersion {
    param([object] $Version, [string] $Of)
    $text = Get-Field -From $Version -Path @($Of, 'gitVersion')
    return [regex]::Match($text, '^v([0-9]+\.[0-9]+)').Groups[1].Value
}

# Every kind of the overlay exists, and may be applied.
function Confirm-Kind {
    # One broken aggregated API is enough for a 1, so its lines are taken as they come.
    $lines = [Collections.Generic.List[string]]::new()
    $asked = $Run.Cluster + @('--request-timeout=20s', 'api-resources', '--no-headers')
    $null = Invoke-Native -Command $asked -Each { if ($_ -is [string]) { $lines.Add($_) } }
    $denied = [Collections.Generic.List[string]]::new()
    $count = 0
    $pairs = @($Run.Objects | ForEach-Object -Process { "$($_.Kind)|$($_.Api)" } | Sort-Object -Unique)
    foreach ($pair in $pairs) {
        $kind, $api = $pair.Split('|')
        $resource = Find-ApiResource -Line $lines -Kind $kind -Api $api
        if ($resource -eq '') {
            Add-Row -Status 'FAIL' -Check "kind $kind" -Found "$api is not in the cluster" `
                -Mend "leave out $(Find-Component -Api $api -Kind $kind), or install what brings its CRD"
            continue
        }
        $count++
        $resource += Get-ApiGroup -Api $api
        if (-not (Invoke-Kubectl -Argument @('auth', 'can-i', 'patch', $resource))) { $denied.Add($resource) }
    }
    Add-DeniedRight -Denied $denied
    if ($denied.Count -gt 0) {
        Add-Row -Status 'FAIL' -Check 'rights' -Found "not allowed: $($denied -join ' ')" `
            -Mend "ask for them in namespace $($Run.Namespace): kubectl auth can-i --list -n $($Run.Namespace)"
    } else {
        Add-Row -Status 'ok' -Check 'rights' -Found "may apply all $count kinds"
    }
}

# What the script does besides applying, as far as it may not.
function Add-DeniedRight {
    param([Collections.Generic.List[string]] $Denied)
    if (-not (Invoke-Kubectl -Argument @('auth', 'can-i', 'patch', 'replicasets.apps'))) { $Denied.Add('replicasets.apps') }
    if (-not (Invoke-Kubectl -Argument @('auth', 'can-i', 'create', 'configmaps'))) { $Denied.Add('configmaps(create)') }
    if (-not (Invoke-Kubectl -Argument @('auth', 'can-i', 'create', 'pods', '--subresource=portforward'))) {
        $Denied.Add('pods/portforward(create)')
    }
}

# The name of a kind's resource, out of the lines of `kubectl api-resources`; '' if it is not there.
function Find-ApiResource {
    param([string[]] $Line, [string] $Kind, [string] $Api)
    foreach ($candidate in $Line) {
        $words = @(-split $candidate)
        if ($words.Count -ge 4 -and $words[-1] -ceq $Kind -and $words[-3] -ceq $Api) { return $words[0] }
    }
    return ''
}

# The component that brings a kind.
function Find-Component {
    param([string] $Api, [string] $Kind)
    foreach ($folder in (Get-ChildItem -LiteralPath (Join-Path -Path $Run.Root -ChildPath 'k8s/components') -Directory)) {
        $files = Get-ChildItem -LiteralPath $folder.FullName -Recurse -File
        foreach ($file in $files) {
            if ((Read-Text -Path $file.FullName) -cmatch "(?m)^kind: $Kind\r?`$") { return "component $($folder.Name)" }
        }
    }
    return "what renders $Api"
}

# ".group", as kubectl wants it behind a kind.
function Get-ApiGroup {
    param([string] $Api)
    if ($Api.Contains('/')) { return '.' + $Api.Split('/')[0] }
    return ''
}

function Confirm-Namespace {
    $found = Get-Resource -Argument @('get', 'namespace', $Run.Namespace)
    if ($null -eq $found) {
        if ($Run.Why -cmatch 'NotFound') {
            Confirm-NewNamespace
        } else {
            Add-Row -Status 'warn' -Check 'namespace' -Found "$($Run.Namespace): $($Run.Why)" -Mend 'it could not be looked at'
        }
        return
    }
    $level = Get-Field -From $found -Path @('metadata', 'labels', 'pod-security.kubernetes.io/enforce')
    $wanted = Get-LineValue -Text (Get-Plain) -Name ' *pod-security\.kubernetes\.io/enforce'
    if ($level -ne '' -and $wanted -ne '' -and $level -ne $wanted) {
        Add-Row -Status 'warn' -Check 'namespace' -Found "$($Run.Namespace) enforces pod security $level" `
            -Mend "becomes ${wanted}: other pods in it may be refused from then on"
    } else {
        Add-Row -Status 'ok' -Check 'namespace' -Found $Run.Namespace
    }
}

function Confirm-NewNamespace {
    if (Test-Rendered -Kind 'Namespace') {
        Add-Row -Status 'ok' -Check 'namespace' -Found "$($Run.Namespace) does not exist yet"
    } else {
        Add-Row -Status 'FAIL' -Check 'namespace' -Found "$($Run.Namespace) does not exist" `
            -Mend "kubectl create namespace $($Run.Namespace)"
    }
}

# Nobody fights a controller that applies from git.
function Confirm-GitOwner {
    $deployment = Get-Resource -Argument @('get', 'deployment', $App, '--show-managed-fields')
    if ($null -eq $deployment) { return }
    $tracking = Get-Field -From $deployment -Path @('metadata', 'annotations', 'argocd.argoproj.io/tracking-id')
    $instance = Get-Field -From $deployment -Path @('metadata', 'labels', 'argocd.argoproj.io/instance')
    $flux = Get-Field -From $deployment -Path @('metadata', 'labels', 'kustomize.toolkit.fluxcd.io/name')
    $managers = @(Get-Field -From $deployment -Path @('metadata', 'labels', 'app.kubernetes.io/managed-by'))
    foreach ($field in (Get-Element -From $deployment -Path @('metadata', 'managedFields'))) {
        $managers += Get-Field -From $field -Path 'manager'
    }
    if ($tracking -ne '' -or $instance -ne '' -or ($managers -join ' ') -match 'argocd') {
        $application = if ($tracking -ne '') { " ($($tracking.Split(':')[0]))" } else { '' }
        Add-Row -Status 'FAIL' -Check 'gitops' -Found "Argo CD manages $App$application" -Mend (Get-GitopsWay)
    } elseif ($flux -ne '') {
        Add-Row -Status 'FAIL' -Check 'gitops' -Found "Flux manages $App ($flux)" -Mend (Get-GitopsWay)
    }
}

function Get-GitopsWay {
    if ($Run.Verb -eq 'rollback') {
        return 'it would be undone at once: git revert the release in the repository that it follows'
    }
    if ($Run.Verb -eq 'down') {
        return 'it would be made again at once: delete the Application, or the overlay in the repository'
    }
    return 'it would be undone at once: commit the new image digest to the repository that it follows'
}

function Confirm-Autoscaling {
    if (-not (Test-Rendered -Kind 'HorizontalPodAutoscaler')) { return }
    if (Invoke-Kubectl -Argument @('get', '--raw', '/apis/metrics.k8s.io/v1beta1')) {
        Add-Row -Status 'ok' -Check 'metrics server' -Found 'found'
    } else {
        Add-Row -Status 'warn' -Check 'metrics server' -Found 'missing' `
            -Mend 'the autoscaler stays at its minimum until metrics-server is installed'
    }
}

function Confirm-Policy {
    if (-not (Test-Rendered -Kind 'NetworkPolicy')) { return }
    $null = Invoke-Kubectl -Argument @('get', 'daemonsets', '--all-namespaces', '-o', 'jsonpath={.items[*].metadata.name}')
    foreach ($name in $Enforced) {
        if (-not $Run.Answer.Contains($name)) { continue }
        Add-Row -Status 'ok' -Check 'network policies' -Found "enforced by $name"
        return
    }
    $version = Get-Resource -Argument @('version')
    if ((Get-Field -From $version -Path @('serverVersion', 'gitVersion')) -match '\+(k3s|rke2)') {
        Add-Row -Status 'ok' -Check 'network policies' -Found 'enforced by k3s'
        return
    }
    Add-Row -Status 'warn' -Check 'network policies' -Found 'no network known to enforce them' `
        -Mend 'they are accepted and have no effect: install Calico or Cilium'
}

function Confirm-Secret {
    $plain = Get-Plain
    $made = @(Select-Kind -Kind 'Secret' | ForEach-Object -MemberName 'Name')
    foreach ($need in (Get-SecretNeed -Text $plain)) {
        $name = $need.Name
        if ($made -contains $name) { continue }
        $row = @{ Check = "secret $name"; Status = 'ok' }
        $way = "kubectl -n $($Run.Namespace) create secret generic $name --from-file=..."
        if (Invoke-Kubectl -Argument @('get', 'secret', $name, '-o', 'name')) {
            Add-Row @row -Found 'found'
        } elseif ($plain -cmatch '(?m)^  - secrets\r?$') { # a Role of the overlay's: one of its workloads makes them
            Add-Row @row -Found 'made in the cluster'
        } elseif ($need.Optional -and -not $plain.Contains("/run/secrets/$name/")) {
            Add-Row @row -Found 'absent, not used'
        } elseif ($need.Optional) {
            $row.Status = 'warn'
            Add-Row @row -Found 'absent' -Mend "settings.env names files of it: $way"
        } else {
            $row.Status = 'FAIL'
            Add-Row @row -Found 'absent' -Mend $way
        }
    }
}

function Confirm-Registry {
    if (-not (Test-Release)) { return }
    if ($Run.Image -eq '' -and $Run.Target -eq 'registry' -and $Run.Registry -eq '') {
        Add-Row -Status 'FAIL' -Check 'registry' -Found 'none' `
            -Mend ('say where this cluster takes images from: ' +
                '-Registry HOST[:PORT][/PATH] (or -Target kind, k3d, ...)')
        return
    }
    if (Test-Loading) {
        Add-Row -Status 'ok' -Check 'image' -Found "by $($Run.Target), no registry"
        if ((Get-Plain).Contains('imagePullPolicy: Always')) {
            Add-Row -Status 'FAIL' -Check 'pull policy' -Found 'Always' `
                -Mend "overlay $($Run.Environment) pulls at every start: -Registry, or -Env local"
        }
        return
    }
    if ($Run.Image -ne '') { return }
    $address = $Run.Registry.Split('/')[0]
    if ($address -notmatch '[.:]' -and $address -ne 'localhost') { $address = 'registry-1.docker.io' }
    foreach ($scheme in @('https', 'http')) {
        $status = Get-HttpStatus -Uri "${scheme}://$address/v2/" -Direct ($address -match '^(localhost|127\.0\.0\.1)(:|$)')
        if (@(200, 401, 403) -notcontains $status) { continue }
        Add-Row -Status 'ok' -Check 'registry' -Found "${scheme}://$address"
        return
    }
    Add-Row -Status 'FAIL' -Check 'registry' -Found "$address does not answer" `
        -Mend "start it, or mend the name; docker login $address if it needs a password"
}

# The status that an address answers with; 0 if it does not answer.
function Get-HttpStatus {
    param([string] $Uri, [bool] $Direct)
    try {
        $answer = Invoke-WebRequest -Uri $Uri -SkipHttpErrorCheck -TimeoutSec 10 -NoProxy:$Direct
        return [int] $answer.StatusCode
    } catch {
        $Run.Why = $_.Exception.Message
        return 0
    }
}

function Confirm-Scanner {
    if (-not (Test-Scanning)) { return }
    if (Test-Tool -Name 'trivy') {
        Add-Row -Status 'ok' -Check 'trivy' -Found (Get-ToolVersion -Name 'trivy')
    } elseif (Invoke-Quiet -Command @($Run.Docker, 'image', 'inspect', '--format', '{{.Id}}', $Run.Trivy)) {
        Add-Row -Status 'ok' -Check 'trivy' -Found 'its container'
    } elseif (-not $Run.DryRun -and $Run.Verb -eq 'up' -and (Invoke-Quiet -Command @($Run.Docker, 'pull', '-q', $Run.Trivy))) {
        Add-Row -Status 'ok' -Check 'trivy' -Found 'its container, pulled'
    } elseif ($Run.DryRun -or $Run.Verb -eq 'doctor') {
        Add-Row -Status 'warn' -Check 'trivy' -Found 'missing' `
            -Mend "its container would be pulled: $($Run.Trivy); or -SkipScan"
    } else {
        Add-Row -Status 'FAIL' -Check 'trivy' -Found 'missing' `
            -Mend "install Trivy, let Docker pull $($Run.Trivy), or say -SkipScan"
    }
}

# Version, Expires, Since and Holder of the lock; $null, and $Run.Why, if there is none. Not by JSON, which PowerShell would
# read with a date in Since.
function Get-LockState {
    $path = 'jsonpath={.metadata.resourceVersion},{.data.expires},{.data.since},{.data.holder}'
    if (-not (Invoke-Kubectl -Argument @('get', 'configmap', $Lock, '-o', $path))) { return $null }
    $parts = @($Run.Answer.Split(',', 4)) + @('', '', '', '')
    $expires = [long] 0
    $null = [long]::TryParse($parts[1], [ref] $expires)
    return [pscustomobject]@{ Version = $parts[0]; Expires = $expires; Since = $parts[2]; Holder = $parts[3] }
}

function Confirm-Lock {
    $state = Get-LockState
    if ($null -eq $state) { return }
    Add-Row -Status 'warn' -Check 'lock' -Found "held by $($state.Holder)" -Mend 'only one can deploy: wait for it'
}

# The checks that the verb needs, in one table.
function Invoke-Preflight {
    Enter-Stage -Name 'preflight'
    $kubectl = Test-Tool -Name 'kubectl'
    if ($kubectl) { Select-Context }
    Confirm-Tool
    if ($kubectl) {
        Confirm-Checkout
        Confirm-Docker
        Confirm-Disk
        Confirm-Overlay
        Confirm-Cluster
        if ($Run.Reached -and $Run.Objects.Count -gt 0) { Confirm-InCluster }
        if ($Run.Objects.Count -gt 0) { Confirm-Registry }
        Confirm-Scanner
    }
    $failures = @($Run.Table | Where-Object -FilterScript { $_.Status -eq 'FAIL' })
    if ((Test-Release) -or $failures.Count -gt 0) { Show-Table }
    if ($failures.Count -eq 0) { return }
    $reasons = @($failures | ForEach-Object -Process { "$($_.Check): $($_.Found)" })
    Exit-Stage -Reason "$($failures.Count) of the checks: $($reasons -join '; ')"
}

function Confirm-InCluster {
    if ($Run.Verb -ne 'smoke' -and $Run.Verb -ne 'status') { Confirm-GitOwner }
    if (-not (Test-Release)) { return }
    Confirm-Kind
    Confirm-Namespace
    Confirm-Secret
    Confirm-Autoscaling
    Confirm-Policy
    Confirm-Lock
}

# ---------------------------------------------------------------------------------------------------- build and scan

function Invoke-Build {
    Enter-Stage -Name 'build'
    if ($Run.Image -ne '') {
        Use-GivenImage
        return
    }
    $Run.Repository = $App
    if ($Run.Target -eq 'registry') { $Run.Repository = "$($Run.Registry)/$App" }
    $reference = "$($Run.Repository):$($Run.Tag)"
    Publish-Image -Stage 'serve' -Reference $reference
    $Run.Digest = $Run.Found
    if (Test-TrackingNeed) {
        Publish-Image -Stage 'mlflow' -Reference "$($Run.Repository)-mlflow:$($Run.Tag)"
        $Run.TrackingDigest = $Run.Found
    }
    if ($Run.Target -ne 'registry') { $Run.ImageId = Get-ImageId -Reference $reference }
    $Run.Deployed = $reference
    if ($Run.Digest -ne '') { $Run.Deployed = "$($Run.Repository)@$($Run.Digest)" }
}

# -Image: by its digest if that can be found out.
function Use-GivenImage {
    $name = $Run.Image.Split('@')[0]
    $Run.Repository = $name
    $Run.Tag = 'latest'
    $tagged = [regex]::Match($name, '^(.*):([^:/]+)$')
    if ($tagged.Success) {
        $Run.Repository = $tagged.Groups[1].Value
        $Run.Tag = $tagged.Groups[2].Value
    }
    if ($Run.Image.Contains('@')) {
        $Run.Digest = $Run.Image.Split('@')[1]
    } elseif (Resolve-Digest -Reference $Run.Image) {
        $Run.Digest = $Run.Found
    } else {
        Write-Note -Text "by its tag: its digest cannot be found out here ($($Run.Why))"
    }
    $Run.Deployed = "$($Run.Repository):$($Run.Tag)"
    $Run.Commit = 'unknown'
    if ($Run.Digest -ne '') { $Run.Deployed = "$($Run.Repository)@$($Run.Digest)" }
    $asked = @($Run.Docker, 'buildx', 'imagetools', 'inspect', $Run.Deployed, '--format', '{{json .Image}}')
    if (Invoke-Quiet -Command $asked) {
        $label = [regex]::Match($Run.Answer, '"org\.opencontainers\.image\.revision" *: *"([^"]+)"')
        if ($label.Success) { $Run.Commit = $label.Groups[1].Value }
    }
    Write-Pass -Text "nothing to build: $($Run.Deployed)"
}

# Found is the image's digest in the registry; false if it has none.
function Resolve-Digest {
    param([string] $Reference)
    $Run.Found = ''
    if (-not (Invoke-Quiet -Command @($Run.Docker, 'buildx', 'imagetools', 'inspect', $Reference))) { return $false }
    $Run.Found = [regex]::Match($Run.Answer, '(?m)^Digest: *(sha256:[0-9a-f]*)').Groups[1].Value
    return $Run.Found -ne ''
}

# '' if Docker does not have it.
function Get-ImageId {
    param([string] $Reference)
    if (Invoke-Quiet -Command @($Run.Docker, 'image', 'inspect', '--format', '{{.Id}}', $Reference)) { return $Run.Answer.Trim() }
    return ''
}

# An image that is there for the cluster; Found is its digest, if a registry has it. $Stage is that of the Dockerfile.
function Publish-Image {
    param([string] $Stage, [string] $Reference)
    $Run.Found = ''
    $Run.Why = ''
    $there = if ($Run.Target -eq 'registry') {
        Resolve-Digest -Reference $Reference
    } else {
        (Get-ImageId -Reference $Reference) -ne ''
    }
    if ($Run.SkipBuild) {
        $why = if ($Run.Why -ne '') { $Run.Why } else { 'not in Docker' }
        if (-not $there) { Exit-Stage -Reason "$Reference is not there ($why): leave out -SkipBuild" }
        Write-Pass -Text "not built: $Reference"
    } elseif ($there -and $Run.Clean -and (Get-Setting -Name 'PYTHON_IMAGE') -eq '') {
        Write-Pass -Text "unchanged: $Reference is there already"
    } else {
        if (-not (Build-Image -Stage $Stage -Reference $Reference)) { Exit-Stage -Reason "docker build of $Reference failed" }
        $there = $false
    }
    if ($Run.Target -eq 'registry') {
        if (-not $there) { Push-Image -Reference $Reference }
    } elseif ($Run.Clean -and (Test-EveryNode -Reference $Reference)) {
        Write-Pass -Text "unchanged: every node has $Reference"
    } else {
        Import-Image -Reference $Reference
    }
}

function Build-Image {
    param([string] $Stage, [string] $Reference)
    $build = @(
        $Run.Docker, 'build', '--target', $Stage, '--tag', $Reference
        '--build-arg', "VERSION=$(Get-AppVersion)", '--build-arg', "GIT_COMMIT=$($Run.Commit)"
    )
    foreach ($name in @('PYTHON_IMAGE', 'NATIVE')) {
        $value = Get-Setting -Name $name
        if ($value -ne '') { $build += @('--build-arg', "$name=$value") }
    }
    # With attestations an image is an index, and clusters without a registry refuse what the archive of it lacks.
    $null = Invoke-Quiet -Command @($Run.Docker, 'build', '--help')
    if ($Run.Answer.Contains('--provenance')) { $build += @('--provenance=false', '--sbom=false') }
    $build += '.'
    return Use-Environment -Variable @{ DOCKER_BUILDKIT = '1' } -Script { Invoke-Long -What 'build' -Command $build }
}

function Push-Image {
    param([string] $Reference)
    if (-not (Invoke-Long -What 'push' -Command @($Run.Docker, 'push', $Reference))) {
        Exit-Stage -Reason ("docker push of $Reference failed: " +
            'is it the right registry, and are you logged in (docker login)?')
    }
    if (Resolve-Digest -Reference $Reference) { return }
    $format = '{{range .RepoDigests}}{{println .}}{{end}}'
    if (-not (Invoke-Quiet -Command @($Run.Docker, 'image', 'inspect', '--format', $format, $Reference))) {
        Exit-Stage -Reason "no digest of ${Reference}: $($Run.Why)"
    }
    $start = ($Reference -replace ':[^:/]*$', '') + '@'
    foreach ($line in (Split-Line -Text $Run.Answer)) {
        if ($Run.Found -eq '' -and $line.StartsWith($start)) { $Run.Found = $line.Substring($start.Length).Trim() }
    }
    if ($Run.Found -eq '') { Exit-Stage -Reason "no digest of $Reference after the push" }
}

# Nodes report the images that they have, most of the time.
function Test-EveryNode {
    param([string] $Reference)
    if ($Run.Target -eq 'docker-desktop') { return $true }
    $nodes = Get-Resource -Argument @('get', 'nodes')
    $count = 0
    foreach ($node in (Get-Element -From $nodes -Path 'items')) {
        $count++
        $names = @(foreach ($image in (Get-Element -From $node -Path @('status', 'images'))) {
                Get-Element -From $image -Path 'names'
            })
        if (@($names | Where-Object -FilterScript { $_.EndsWith("/$Reference") }).Count -eq 0) { return $false }
    }
    return $count -gt 0
}

# Into the nodes, as an archive: kind's own way fails with Docker's containerd store.
function Import-Image {
    param([string] $Reference)
    if ($Run.Target -eq 'docker-desktop') {
        Write-Pass -Text "the cluster shares Docker's images"
        return
    }
    $archive = Get-TempPath -Name 'image.tar'
    if (-not (Invoke-Announced -Command @($Run.Docker, 'save', '-o', $archive, $Reference))) {
        Exit-Stage -Reason "docker save of $Reference failed"
    }
    $command = switch ($Run.Target) {
        'kind' { @('kind', 'load', 'image-archive', $archive, '--name', ($Run.Context -replace '^kind-', '')) }
        'k3d' { @('k3d', 'image', 'import', '--cluster', ($Run.Context -replace '^k3d-', ''), $archive) }
        'minikube' { @('minikube', '--profile', $Run.Context, 'image', 'load', $archive) }
        default { @(-split (Get-Setting -Name 'CTR' -Default 'ctr')) + @('--namespace', 'k8s.io', 'images', 'import', $archive) }
    }
    if (-not (Invoke-Long -What 'load' -Command $command)) { Exit-Stage -Reason "$($Run.Target) did not take the image" }
    Remove-Item -LiteralPath $archive
}

function Invoke-Scan {
    Enter-Stage -Name 'scan'
    if ($Run.SkipScan) {
        Write-Note -Text 'left out (-SkipScan)'
        return
    }
    $Run.Scans = Join-Path -Path $Run.Root -ChildPath 'build/deploy'
    $Run.Reports = if (Test-Tool -Name 'trivy') { $Run.Scans } else { '/scan' }
    $null = New-Item -ItemType Directory -Force -Path $Run.Scans
    $manifests = Read-Text -Path (Get-TempPath -Name 'release.yaml')
    Write-Text -Path (Join-Path -Path $Run.Scans -ChildPath 'manifests.yaml') -Text $manifests
    $ignore = Join-Path -Path $Run.Root -ChildPath '.trivyignore.yaml'
    $ignored = if (Test-Path -LiteralPath $ignore) { Read-Text -Path $ignore } else { '' }
    Write-Text -Path (Join-Path -Path $Run.Scans -ChildPath 'ignore.yaml') -Text $ignored
    Invoke-ImageScan -Reference $Run.Deployed -Name $App
    if (Test-TrackingNeed) {
        $pinned = if ($Run.TrackingDigest -ne '') { "@$($Run.TrackingDigest)" } else { ":$($Run.Tag)" }
        Invoke-ImageScan -Reference "$($Run.Repository)-mlflow$pinned" -Name "$App-mlflow"
    }
    $config = @(
        'config', '--severity', $Run.Severity, '--exit-code', '3', '--ignorefile', "$($Run.Reports)/ignore.yaml"
        "$($Run.Reports)/manifests.yaml"
    )
    if (-not (Invoke-Trivy -Argument $config)) { Exit-Stage -Reason "$(Get-Verdict) in the manifests" }
    Write-Pass -Text "no finding of $($Run.Severity); reports and SBOM are in build/deploy"
}

# Trivy, or its container, which gets an archive of the image and not Docker's socket.
function Invoke-Trivy {
    param([string[]] $Argument)
    if (Test-Tool -Name 'trivy') { return Invoke-Long -What 'trivy' -Command (@('trivy') + $Argument) }
    $start = @($Run.Docker, 'run', '--rm')
    if (-not $IsWindows) {
        $null = Invoke-Quiet -Command @('id', '-u')
        $user = $Run.Answer
        $null = Invoke-Quiet -Command @('id', '-g')
        $start += @('--user', "${user}:$($Run.Answer)")
    }
    $start += @('--volume', "$($Run.Scans):/scan", $Run.Trivy, '--cache-dir', '/scan/cache')
    return Invoke-Long -What 'trivy' -Command ($start + $Argument)
}

function Invoke-ImageScan {
    param([string] $Reference, [string] $Name)
    $report = "$($Run.Reports)/$Name.trivy.json"
    $archive = Join-Path -Path $Run.Scans -ChildPath 'image.tar'
    $subject = @($Reference)
    if (-not (Test-Tool -Name 'trivy')) {
        Save-Image -Reference $Reference -Path $archive
        $subject = @('--input', '/scan/image.tar')
    }
    $image = @(
        'image', '--scanners', 'vuln,secret', '--ignore-unfixed', '--list-all-pkgs'
        '--ignorefile', "$($Run.Reports)/ignore.yaml", '--format', 'json', '--output', $report
    )
    if (-not (Invoke-Trivy -Argument ($image + $subject))) {
        Exit-Stage -Reason "Trivy could not scan $Reference (no network for its database? -SkipScan goes on without)"
    }
    if (Test-Path -LiteralPath $archive) { Remove-Item -LiteralPath $archive }
    $listing = @('convert', '--format', 'cyclonedx', '--output', "$($Run.Reports)/$Name.cdx.json", $report)
    if (-not (Invoke-Trivy -Argument $listing)) { Exit-Stage -Reason "Trivy wrote no SBOM of $Reference" }
    $judging = @('convert', '--format', 'table', '--severity', $Run.Severity, '--exit-code', '3', $report)
    if (-not (Invoke-Trivy -Argument $judging)) { Exit-Stage -Reason "$(Get-Verdict) in $Reference" }
}

# The archive that Trivy's container reads.
function Save-Image {
    param([string] $Reference, [string] $Path)
    if ((Get-ImageId -Reference $Reference) -eq '') {
        if (-not (Invoke-Long -What 'pull' -Command @($Run.Docker, 'pull', $Reference))) {
            Exit-Stage -Reason "$Reference cannot be pulled to scan it"
        }
    }
    if (-not (Invoke-Announced -Command @($Run.Docker, 'save', '-o', $Path, $Reference))) {
        Exit-Stage -Reason "docker save of $Reference failed"
    }
}

# What Trivy's last exit code means.
function Get-Verdict {
    if ($Run.Status -eq 3) { return "findings of $($Run.Severity)" }
    return "Trivy failed ($($Run.Status))"
}

# ---------------------------------------------------------------------------------------------------- lock

function Get-LockObject {
    param([string] $Name, [long] $Expires, [string] $Since, [string] $Version = '')
    $metadata = [ordered]@{ name = $Name; namespace = $Run.Namespace; labels = @{ 'app.kubernetes.io/part-of' = $App } }
    if ($Version -ne '') { $metadata['resourceVersion'] = $Version }
    return ConvertTo-Json -Depth 100 -InputObject ([ordered]@{
            apiVersion = 'v1'; kind = 'ConfigMap'; metadata = $metadata
            data = [ordered]@{ holder = $Run.Holder; since = $Since; expires = "$Expires" }
        })
}

# Now and NowS: of the API server, because the clocks of those who deploy may differ.
function Read-ServerTime {
    $file = Get-TempPath -Name 'clock.json'
    Write-Text -Path $file -Text (Get-LockObject -Name "$Lock-clock-$PID" -Expires 0 -Since '')
    $path = 'jsonpath={.metadata.creationTimestamp}'
    if (-not (Invoke-Kubectl -Argument @('create', '--dry-run=server', '-f', $file, '-o', $path))) {
        Exit-Stage -Reason "no lock can be made: $($Run.Why)"
    }
    $Run.Now = $Run.Answer.Trim()
    $Run.NowS = [DateTimeOffset]::Parse($Run.Now, [Globalization.CultureInfo]::InvariantCulture).ToUnixTimeSeconds()
}

# Creating it is the test and the set.
function Lock-Release {
    $Run.Holder = "$([Environment]::UserName)@$([Environment]::MachineName) pid $PID"
    Read-ServerTime
    $expires = [long] ($Run.NowS + 2 * $Run.Timeout + 2 * $Run.SmokeS + 300)
    $Run.LockSince = $Run.Now # from here on, Unlock-Release looks whether it is ours
    $file = Get-TempPath -Name 'lock.json'
    Write-Text -Path $file -Text (Get-LockObject -Name $Lock -Expires $expires -Since $Run.Now)
    Write-Announcement -Command ($Run.Here + @('create', '-f', $file))
    if (Invoke-Kubectl -Argument @('create', '-f', $file)) { return }
    if ($Run.Why -cnotmatch 'AlreadyExists') { Exit-Stage -Reason "the lock cannot be made: $($Run.Why)" }
    $state = Get-LockState
    if ($null -eq $state) { Exit-Stage -Reason "the lock has just changed hands ($($Run.Why)): try again" }
    if ($state.Expires -gt $Run.NowS -and -not (Test-Gone -Holder $state.Holder)) {
        Exit-Stage -Reason ("$($state.Holder) is deploying since $($state.Since); its lock ends in " +
            "$($state.Expires - $Run.NowS) s. If it is dead: $($Run.Here -join ' ') delete configmap $Lock")
    }
    Write-Note -Text "taking over the lock of $($state.Holder) (since $($state.Since)), which has ended"
    $object = Get-LockObject -Name $Lock -Expires $expires -Since $Run.Now -Version $state.Version
    Write-Text -Path $file -Text $object
    if (-not (Invoke-Kubectl -Argument @('replace', '-f', $file))) {
        Exit-Stage -Reason "another was faster in taking over the lock: $($Run.Why)"
    }
}

# Whether the holder was a process of this machine that is there no more.
function Test-Gone {
    param([string] $Holder)
    $parts = $Holder -split ' pid ', 2
    if ($parts.Count -lt 2 -or $parts[0] -cne ($Run.Holder -split ' pid ', 2)[0] -or $parts[1] -notmatch '^[0-9]+$') {
        return $false
    }
    return $null -eq (Get-Process -Id ([int] $parts[1]) -ErrorAction SilentlyContinue)
}

# Only if it is ours: it may have ended and gone to another.
function Unlock-Release {
    if ($Run.LockSince -eq '') { return }
    foreach ($try in 1..3) { # a second signal ends whatever is waited for
        $state = Get-LockState
        if ($null -ne $state) {
            if ($state.Since -ne $Run.LockSince -or $state.Holder -cne $Run.Holder) { return }
            if (Invoke-Kubectl -Argument @('delete', 'configmap', $Lock, '--ignore-not-found')) { return }
        }
        if ($Run.Why -cmatch 'NotFound') { return }
    }
    Write-Alarm -Text "the lock stays ($try tries: $($Run.Why)): $($Run.Here -join ' ') delete configmap $Lock"
}

# ---------------------------------------------------------------------------------------------------- deploy

function Invoke-Apply {
    Enter-Stage -Name 'deploy'
    $release = Get-TempPath -Name 'release.yaml'
    if (-not (Read-Text -Path $release).Contains("image: $($Run.Deployed)")) {
        Exit-Stage -Reason ("overlay $($Run.Environment) does not use image $App, so " +
            "$($Run.Deployed) is nowhere in it")
    }
    Build-Namespace
    Lock-Release
    Read-PreviousRevision
    if (-not (Compare-Release)) {
        Write-Pass -Text 'unchanged: the cluster has all of it already; nothing is applied'
        return
    }
    $apply = $Run.Cluster + @('apply', '--server-side', '--force-conflicts', "--field-manager=$Manager")
    $rehearsal = $apply + @('--dry-run=server', '-f', $release)
    Write-Announcement -Command $rehearsal
    $checked = Invoke-Native -Command $rehearsal -Each {
        if ($_ -is [Management.Automation.ErrorRecord]) { [Console]::Error.WriteLine($_.Exception.Message) }
    }
    if (-not $checked) { Exit-Stage -Reason 'the cluster refuses it (nothing has been changed)' }
    Write-Pass -Text 'server-side dry run'
    $Run.Applied = $true
    if (-not (Invoke-Announced -Command ($apply + @('-f', $release)))) { Exit-Stage -Reason 'kubectl apply failed' }
}

# First, because the server checks nothing inside a namespace that does not exist.
function Build-Namespace {
    $name = $Run.Namespace
    if (Invoke-Kubectl -Argument @('get', 'namespace', $name, '-o', 'name')) { return }
    if ($Run.Why -cnotmatch 'NotFound') { Exit-Stage -Reason "namespace ${name}: $($Run.Why)" }
    $file = Export-Namespace
    Write-Note -Text "namespace $name does not exist: it is made first, so that the server can check the rest"
    $apply = $Run.Cluster + @('apply', '--server-side', "--field-manager=$Manager", '-f', $file)
    if (-not (Invoke-Announced -Command $apply)) { Exit-Stage -Reason "namespace $name cannot be made" }
}

# A file with its object, out of the manifests.
function Export-Namespace {
    $release = Read-Text -Path (Get-TempPath -Name 'release.yaml')
    $wanted = @(Split-Document -Text $release | Where-Object -FilterScript { $_ -cmatch '(?m)^kind: Namespace\r?$' })
    if ($wanted.Count -eq 0) {
        Exit-Stage -Reason ("namespace $($Run.Namespace) does not exist, and overlay $($Run.Environment) does not make it: " +
            "kubectl create namespace $($Run.Namespace)")
    }
    $file = Get-TempPath -Name 'namespace.yaml'
    Write-Text -Path $file -Text ($wanted -join "`n---`n")
    return $file
}

# Number, Ready, Commit, Image, Tested, Name and Object of each revision, in their order; $null if they cannot be read.
function Get-Revision {
    $sets = Get-Resource -Argument @('get', 'replicasets', '-l', $Selector)
    if ($null -eq $sets) { return $null }
    $revisions = [Collections.Generic.List[object]]::new()
    foreach ($set in (Get-Element -From $sets -Path 'items')) {
        $annotations = Get-Field -From $set -Path @('metadata', 'annotations') -Default @{}
        $number = 0
        $null = [int]::TryParse((Get-Field -From $annotations -Path 'deployment.kubernetes.io/revision'), [ref] $number)
        $revisions.Add([pscustomobject]@{
                Number = $number
                Ready = [int] (Get-Field -From $set -Path @('status', 'readyReplicas') -Default 0)
                Commit = Get-Field -From $annotations -Path "$App/commit"
                Image = Get-ApiImage -Template (Get-Field -From $set -Path @('spec', 'template'))
                Tested = '' -ne (Get-Field -From $annotations -Path "$App/tested")
                Name = Get-Field -From $set -Path @('metadata', 'name')
            })
    }
    return , @($revisions | Sort-Object -Property 'Number')
}

# The image of container `api` in a pod's template.
function Get-ApiImage {
    param([object] $Template)
    $container = Find-Element -From $Template -Path @('spec', 'containers') -Key 'name' -Value 'api'
    return Get-Field -From $container -Path 'image'
}

# Previous: the newest revision that has ready pods, to which a failure goes back.
function Read-PreviousRevision {
    $revisions = Get-Revision
    if ($null -eq $revisions) { Exit-Stage -Reason "the revisions cannot be read: $($Run.Why)" }
    $ready = @($revisions | Where-Object -FilterScript { $_.Ready -gt 0 -and $_.Number -gt 0 })
    $Run.Previous = if ($ready.Count -gt 0) { "$($ready[-1].Number)" } else { '' }
}

# Whether the cluster differs from the manifests; names what differs.
function Compare-Release {
    $diff = $Run.Cluster + @('diff', '--server-side', '--force-conflicts', "--field-manager=$Manager")
    $diff += @('-f', (Get-TempPath -Name 'release.yaml'))
    Write-Announcement -Command $diff
    $lines = [Collections.Generic.List[string]]::new()
    $complaints = [Collections.Generic.List[string]]::new()
    $external = @{}
    if (-not (Test-Tool -Name 'diff')) { $external['KUBECTL_EXTERNAL_DIFF'] = 'git diff --no-index' }
    $null = Use-Environment -Variable $external -Script {
        Invoke-Native -Command $diff -Each {
            if ($_ -is [Management.Automation.ErrorRecord]) { $complaints.Add($_.Exception.Message) } else { $lines.Add($_) }
        }
    }
    if ($Run.Status -gt 1) { Exit-Stage -Reason "kubectl diff failed: $(Get-Complaint -Line $complaints)" }
    if ($Run.Status -eq 0) { return $false }
    foreach ($line in $lines) {
        $named = [regex]::Match($line, '^diff .*[/\\]MERGED-[0-9]*[/\\]([^/\\"]*)"?$')
        if ($Run.DryRun) {
            Write-Quote -Text $line
        } elseif ($named.Success) {
            Write-Note -Text "differs: $($named.Groups[1].Value)"
        }
    }
    return $true
}

# ---------------------------------------------------------------------------------------------------- roll-out and health

function Invoke-Rollout {
    Enter-Stage -Name 'roll-out'
    if (-not (Wait-Rollout)) { Exit-Stage -Reason $Run.Why }
    if (-not (Wait-Other)) { Exit-Stage -Reason $Run.Why }
}

# What the Deployment wants and has; $null, and $Run.Why, if it cannot be read.
function Get-DeploymentState {
    $deployment = Get-Resource -Argument @('get', 'deployment', $App)
    if ($null -eq $deployment) { return $null }
    $counts = @{}
    foreach ($name in @('observedGeneration', 'updatedReplicas', 'replicas', 'availableReplicas', 'readyReplicas')) {
        $counts[$name] = [long] (Get-Field -From $deployment -Path @('status', $name) -Default 0)
    }
    $progressing = Find-Element -From $deployment -Path @('status', 'conditions') -Key 'type' -Value 'Progressing'
    $failing = Find-Element -From $deployment -Path @('status', 'conditions') -Key 'type' -Value 'ReplicaFailure'
    $desired = [long] (Get-Field -From $deployment -Path @('spec', 'replicas') -Default 1)
    $generation = [long] (Get-Field -From $deployment -Path @('metadata', 'generation') -Default 0)
    $seen = $counts['observedGeneration'] -ge $generation -and $counts['updatedReplicas'] -ge $desired -and
        $counts['replicas'] -le $counts['updatedReplicas']
    return [pscustomobject]@{
        Desired = $desired; Updated = $counts['updatedReplicas']; Total = $counts['replicas']; Ready = $counts['readyReplicas']
        Reason = Get-Field -From $progressing -Path 'reason'; Trouble = Get-Field -From $failing -Path 'message'
        Complete = $seen -and $counts['availableReplicas'] -ge $counts['updatedReplicas']
        Healthy = $seen -and $counts['availableReplicas'] -ge $desired
    }
}

# Until the Deployment has what it wants; false, and why, if it does not get it.
function Wait-Rollout {
    $end = (Get-Second) + $Run.Timeout
    $Run.Stuck = -1
    $Run.Progress = ''
    Write-Note -Text "waiting for deployment/$App (at most $($Run.Timeout) s)"
    while ($true) {
        $state = Get-DeploymentState
        $line = $Run.Why
        if ($null -ne $state) {
            Show-Progress -State $state
            if ($state.Complete) {
                $null = Read-Release
                return $true
            }
            $line = Get-Obstacle -State $state
            if ($line -eq '') { $Run.Stuck = -1 } elseif ($Run.Stuck -lt 0) { $Run.Stuck = Get-Second }
        }
        $stuck = $Run.Stuck -ge 0 -and (Get-Second) - $Run.Stuck -ge $Run.StuckS
        if ($stuck -or (Get-Second) -ge $end) {
            $last = if ($Run.Progress -ne '') { $Run.Progress } else { 'no answer' }
            $because = if ($line -ne '') { ": $line" } else { '' }
            $Run.Why = "not complete after $((Get-Second) - $end + $Run.Timeout) s ($last)$because"
            return $false
        }
        if ($Run.Ending -eq 'twice') {
            $Run.Why = 'not waited for any longer'
            return $false
        }
        Wait-Moment -Seconds $Run.PollS
    }
}

# The pods, whenever they are others than the last time.
function Show-Progress {
    param([object] $State)
    $line = "pods ready $($State.Ready)/$([Math]::Max($State.Desired, $State.Total)), new $($State.Updated)"
    if ($line -ne $Run.Progress) { Write-Note -Text $line }
    $Run.Progress = $line
}

# What keeps the Deployment from going on; '' if nothing does.
function Get-Obstacle {
    param([object] $State)
    # A deadline exceeded may be the one of the release before, until the controller has looked again.
    $line = Get-FirstReason
    if ($State.Reason -eq 'ProgressDeadlineExceeded') {
        $line = 'no progress within its deadline' + $(if ($line -ne '') { ": $line" } else { '' })
    }
    if ($State.Trouble -ne '') { return $State.Trouble }
    return $line
}

# Why the pod does not run, in the words of its containers and of the scheduler.
function Get-PodReason {
    param([object] $Pod)
    $words = [Collections.Generic.List[string]]::new()
    foreach ($list in @('initContainerStatuses', 'containerStatuses')) {
        foreach ($container in (Get-Element -From $Pod -Path @('status', $list))) {
            $words.Add((Get-Field -From $container -Path @('state', 'waiting', 'reason')))
            $words.Add((Get-Field -From $container -Path @('state', 'waiting', 'message')))
            if ($list -eq 'containerStatuses') {
                $words.Add((Get-Field -From $container -Path @('state', 'terminated', 'reason')))
            }
            $words.Add((Get-Field -From $container -Path @('lastState', 'terminated', 'reason')))
        }
    }
    $scheduled = Find-Element -From $Pod -Path @('status', 'conditions') -Key 'type' -Value 'PodScheduled'
    $words.Add((Get-Field -From $scheduled -Path 'reason'))
    $words.Add((Get-Field -From $scheduled -Path 'message'))
    return (($words -join ' ') -replace '\s+', ' ').Trim()
}

# The pods of the service, those that are ending too; $null, and $Run.Why, if they cannot be read.
function Get-Pod {
    $pods = Get-Resource -Argument @('get', 'pods', '-l', $Selector)
    if ($null -eq $pods) { return $null }
    $found = [Collections.Generic.List[object]]::new()
    foreach ($pod in (Get-Element -From $pods -Path 'items')) {
        $container = Find-Element -From $pod -Path @('status', 'containerStatuses') -Key 'name' -Value 'api'
        $found.Add([pscustomobject]@{
                Name = Get-Field -From $pod -Path @('metadata', 'name')
                Ending = '' -ne (Get-Field -From $pod -Path @('metadata', 'deletionTimestamp'))
                Phase = Get-Field -From $pod -Path @('status', 'phase')
                Ready = $true -eq (Get-Field -From $container -Path 'ready' -Default $false)
                Image = Get-Field -From $container -Path 'image'
                ImageId = Get-Field -From $container -Path 'imageID'
                Reason = Get-PodReason -Pod $pod
            })
    }
    return , $found.ToArray()
}

# Why a pod cannot start, if one says so.
function Get-FirstReason {
    $pods = Get-Pod
    foreach ($pod in $pods) {
        if ($pod.Ending -or $pod.Reason -cnotmatch $NotStarting) { continue }
        $text = [regex]::Match($pod.Reason, $NotStarting).Value
        return $text.Substring(0, [Math]::Min(160, $text.Length)).Trim()
    }
    return ''
}

# What components bring with them.
function Wait-Other {
    $end = (Get-Second) + $Run.Timeout
    foreach ($object in $Run.Objects) {
        if (@('Deployment', 'StatefulSet') -cnotcontains $object.Kind -or $object.Name -eq $App) { continue }
        $name = "$($object.Kind.ToLowerInvariant())/$($object.Name)"
        $left = [Math]::Max(1, $end - (Get-Second))
        if (-not (Invoke-Announced -Command ($Run.Here + @('rollout', 'status', $name, "--timeout=${left}s")))) {
            $Run.Why = "$name is not ready"
            return $false
        }
    }
    return $true
}

# Revision, LiveImage and LiveCommit of the Deployment.
function Read-Release {
    $deployment = Get-Resource -Argument @('get', 'deployment', $App)
    if ($null -eq $deployment) { return $false }
    $annotations = Get-Field -From $deployment -Path @('metadata', 'annotations') -Default @{}
    $Run.Revision = Get-Field -From $annotations -Path 'deployment.kubernetes.io/revision'
    $Run.LiveCommit = Get-Field -From $annotations -Path "$App/commit"
    $Run.LiveImage = Get-ApiImage -Template (Get-Field -From $deployment -Path @('spec', 'template'))
    return $true
}

# The service has ready pods behind it.
function Invoke-Health {
    Enter-Stage -Name 'health'
    $end = (Get-Second) + $Run.StuckS
    while ($true) {
        $slices = Get-Resource -Argument @('get', 'endpointslices', '-l', "kubernetes.io/service-name=$App")
        if ($null -ne $slices) {
            $ready = 0
            foreach ($slice in (Get-Element -From $slices -Path 'items')) {
                foreach ($endpoint in (Get-Element -From $slice -Path 'endpoints')) {
                    if ($true -eq (Get-Field -From $endpoint -Path @('conditions', 'ready') -Default $false)) { $ready++ }
                }
            }
            if ($ready -gt 0) {
                Write-Pass -Text "service/$App leads to $ready ready pods"
                return
            }
            $Run.Why = "service/$App has no ready endpoint: does its selector match the pods?"
        }
        if ((Get-Second) -ge $end) { Exit-Stage -Reason $Run.Why }
        Wait-Moment -Seconds $Run.PollS
    }
}

# ---------------------------------------------------------------------------------------------------- smoke

function Invoke-Smoke {
    Enter-Stage -Name 'smoke'
    if (-not (Test-Smoke)) { Exit-Stage -Reason $Run.Why }
}

# Whether what is live answers as it must; $Run.Why if not.
function Test-Smoke {
    param([switch] $AnyCommit)
    $end = (Get-Second) + $Run.SmokeS
    while ($true) {
        $Run.Retry = $false
        if (Test-SmokeOnce -AnyCommit:$AnyCommit) { return $true }
        Close-Child
        if ($Run.Ending -eq 'twice' -or -not $Run.Retry -or (Get-Second) -ge $end) { return $false }
        Write-Note -Text "again: $($Run.Why)"
        Wait-Moment -Seconds $Run.PollS
    }
}

function Test-SmokeOnce {
    param([switch] $AnyCommit)
    if (-not (Test-Pod)) { return $false }
    if (-not (Open-Forward -Resource "service/$App" -Port 80)) { return $false }
    if (-not (Test-Answer -Path 'readyz' -Wanted 200)) { return $false }
    Write-Pass -Text 'readyz answers 200'
    if (-not (Test-Info -AnyCommit:$AnyCommit)) { return $false }
    $golden = Get-SmokePath -Name 'golden.request.json'
    if (-not (Test-Answer -Path 'predict' -Wanted 200 -File $golden)) { return $false }
    if (-not (Test-Golden)) { return $false }
    $bad = Get-SmokePath -Name 'bad.request.json'
    if (-not (Test-Answer -Path 'predict' -Wanted 400 -File $bad)) { return $false }
    Write-Pass -Text 'a bad request gets its 400'
    if (-not (Open-Forward -Resource "pod/$($Run.Pod)" -Port 9100)) { return $false }
    if (-not (Test-Answer -Path 'metrics' -Wanted 200)) { return $false }
    if ($Run.Body -notmatch "(?m)^ml_model_info\{.*$([regex]::Escape($Run.ModelDigest))") {
        $Run.Why = "the metrics of $($Run.Pod) do not name model $($Run.Model)"
        return $false
    }
    Write-Pass -Text 'metrics name the live model'
    Close-Child
    return $true
}

# The overlay's own file for the smoke test, or that of all.
function Get-SmokePath {
    param([string] $Name)
    $own = Join-Path -Path $Run.Root -ChildPath "k8s/overlays/$($Run.Environment)/smoke/$Name"
    if (Test-Path -LiteralPath $own) { return $own }
    return Join-Path -Path $Run.Root -ChildPath "k8s/smoke/$Name"
}

# Every pod runs the image that is deployed; Pod is one of them. Pods that are ending do not count.
function Test-Pod {
    $pods = Get-Pod
    if ($null -eq $pods) { return $false }
    $Run.Pod = ''
    $count = 0
    foreach ($pod in $pods) {
        if ($pod.Ending) { $Run.Retry = $true } # the service may still lead to it
        if ($pod.Ending -or $pod.Phase -ne 'Running') { continue }
        if (-not $pod.Ready) {
            $Run.Why = "$($pod.Name) is not ready"
            $Run.Retry = $true
            return $false
        }
        if (-not (Test-SameImage -Image $pod.Image -ImageId $pod.ImageId)) {
            $Run.Why = "$($pod.Name) runs $($pod.ImageId) ($($pod.Image)), not $($Run.LiveImage)"
            return $false
        }
        $Run.Pod = $pod.Name
        $count++
    }
    if ($Run.Pod -eq '') {
        $Run.Why = 'no pod is running'
        $Run.Retry = $true
        return $false
    }
    Write-Pass -Text "every pod ($count) runs $($Run.LiveImage)"
    return $true
}

# Whether a pod's image, as its status has it, is LiveImage.
function Test-SameImage {
    param([string] $Image, [string] $ImageId)
    $live = $Run.LiveImage
    if ($live.Contains('@')) {
        if ($ImageId.Contains($live.Split('@')[1])) { return $true }
        # CRI-O reports the manifest of its own platform, out of the index that was asked for.
        $theirs = $ImageId.Split('@')[-1]
        $index = Invoke-Quiet -Command @($Run.Docker, 'buildx', 'imagetools', 'inspect', '--raw', $live)
        return $index -and $theirs -ne '' -and $Run.Answer.Contains("`"$theirs`"")
    }
    if ($Run.ImageId -ne '' -and $ImageId.EndsWith($Run.ImageId)) { return $true }
    # Docker counts images by another id than containerd does; the tag is that of one commit, which /model/info names.
    if ($ImageId -match '^docker.*//' -and $Run.ImageId -ne '') { return $false }
    return $Image -ceq $live -or $Image.EndsWith("/$live") -or $Image.StartsWith('sha256:')
}

# Port is the local one, which kubectl chooses.
function Open-Forward {
    param([string] $Resource, [int] $Port)
    $command = $Run.Here + @('port-forward', '--address', '127.0.0.1', $Resource, ":$Port")
    Write-Announcement -Command $command
    $name = "forward-$([guid]::NewGuid())"
    $out = Get-TempPath -Name "$name.out"
    $complaints = Get-TempPath -Name "$name.error"
    $start = @{
        FilePath = 'kubectl'; PassThru = $true; NoNewWindow = $true
        ArgumentList = @($command | Select-Object -Skip 1 | ForEach-Object -Process { "`"$_`"" })
        RedirectStandardOutput = $out; RedirectStandardError = $complaints
    }
    $child = Start-Process @start
    $Run.Children.Add($child)
    for ($try = 0; $try -lt 200; $try++) {
        $ended = $child.HasExited
        $line = [regex]::Match((Read-Growing -Path $out), '(?m)^Forwarding from 127\.0\.0\.1:([0-9]+) ')
        if ($line.Success) {
            $Run.Port = $line.Groups[1].Value
            return $true
        }
        if ($ended) { break }
        Wait-Moment -Seconds 0.05
    }
    $said = @(Split-Line -Text ((Read-Growing -Path $out) + (Read-Growing -Path $complaints)))
    $Run.Why = "no port-forward to ${Resource}: $(Get-Complaint -Line $said)"
    $Run.Retry = $true
    return $false
}

# What is in a file that a program may still be writing to; '' if there is none yet.
function Read-Growing {
    param([string] $Path)
    if (-not (Test-Path -LiteralPath $Path)) { return '' }
    return [string] (Get-Content -LiteralPath $Path -Raw)
}

# The answer is in Body; false, and why, if it has not the status that is wanted.
function Test-Answer {
    param([string] $Path, [int] $Wanted, [string] $File = '')
    $request = @{
        Uri = "http://127.0.0.1:$($Run.Port)/$Path"; SkipHttpErrorCheck = $true; TimeoutSec = 20; NoProxy = $true
    }
    if ($File -ne '') {
        $request['Method'] = 'Post'
        $request['ContentType'] = 'application/json'
        $request['InFile'] = $File
    }
    try {
        $answer = Invoke-WebRequest @request
    } catch {
        $Run.Why = "/${Path}: $($_.Exception.Message)"
        $Run.Retry = $true
        return $false
    }
    $Run.Body = [Text.Encoding]::UTF8.GetString($answer.RawContentStream.ToArray())
    if ([int] $answer.StatusCode -eq $Wanted) { return $true }
    $Run.Why = "/$Path answers $([int] $answer.StatusCode) instead of ${Wanted}: $(Get-BodyStart)"
    if ($Path -eq 'readyz') { $Run.Retry = $true }
    return $false
}

function Get-BodyStart {
    return $Run.Body.Substring(0, [Math]::Min(200, $Run.Body.Length)) -replace '\r?\n', ' '
}

# Body as nested tables; an empty one if it is no JSON object.
function ConvertFrom-Body {
    try {
        return ConvertFrom-Json -InputObject $Run.Body -AsHashtable
    } catch {
        return @{}
    }
}

# Model and ModelDigest that are live, of the commit that was deployed.
function Test-Info {
    param([switch] $AnyCommit)
    if (-not (Test-Answer -Path 'model/info' -Wanted 200)) { return $false }
    $info = ConvertFrom-Body
    $commit = [string] (Get-Field -From $info -Path @('service', 'commit'))
    $version = [string] (Get-Field -From $info -Path 'version')
    $Run.ModelDigest = [string] (Get-Field -From $info -Path 'digest')
    $Run.Model = "$(Get-Field -From $info -Path 'name') version $version"
    if ($version -eq '' -or -not $Run.ModelDigest.StartsWith('sha256:')) {
        $Run.Why = "/model/info names no version and digest: $(Get-BodyStart)"
        return $false
    }
    $wanted = $Run.LiveCommit
    if (-not $AnyCommit -and $wanted -ne '' -and $wanted -ne 'unknown' -and $commit -ne $wanted) {
        $live = if ($commit -ne '') { $commit } else { '?' }
        $Run.Why = "the live service is of commit $live, not $wanted"
        return $false
    }
    $known = if ($commit -ne '') { $commit } else { 'unknown' }
    Write-Pass -Text "$($Run.Model) ($($Run.ModelDigest)) by commit $known"
    return $true
}

function Test-Golden {
    foreach ($line in (Split-Line -Text (Read-Text -Path (Get-SmokePath -Name 'golden.expected')))) {
        if ($line -eq '' -or $Run.Body.Contains($line)) { continue }
        $Run.Why = "the golden prediction lacks ${line}: $(Get-BodyStart)"
        return $false
    }
    Write-Pass -Text 'golden prediction'
    return $true
}

# ---------------------------------------------------------------------------------------------------- when it fails

# The reasons, from the cluster.
function Show-Reason {
    Write-Line
    Write-Line -Text "$($Run.Bold)Why$($Run.Plain)"
    $null = Invoke-Announced -Command ($Run.Here + @('get', 'pods', '-l', $Selector, '-o', 'wide'))
    $pods = @(foreach ($pod in (Get-Pod)) { if (-not $pod.Ending) { $pod } })
    foreach ($pod in $pods) {
        if ($pod.Reason -ne '') { Write-Note -Text "$($pod.Name): $($pod.Reason)" }
    }
    $events = @('get', 'events', '--sort-by=.lastTimestamp', '--field-selector', 'type=Warning')
    Write-Announcement -Command ($Run.Here + $events)
    $null = Invoke-Kubectl -Argument $events
    Write-Quote -Text (@(Split-Line -Text $Run.Answer | Select-Object -Last 15) -join "`n")
    $unready = @($pods | Where-Object -FilterScript { -not $_.Ready } | Select-Object -First 2)
    foreach ($pod in $unready) { Show-Log -Pod $pod.Name }
}

# What the pod wrote before it ended, else what it writes.
function Show-Log {
    param([string] $Pod)
    foreach ($previous in @($true, $false)) {
        $logs = @('logs', $Pod, '--tail=40')
        if ($previous) { $logs += '--previous' }
        if (-not (Invoke-Kubectl -Argument $logs)) { continue }
        Write-Announcement -Command ($Run.Here + $logs)
        Write-Quote -Text $Run.Answer
        return
    }
}

# After a failure or an interruption: the revision before, tested. False only if that fails.
function Restore-Release {
    if ($Run.NoRollback) {
        Write-Note -Text 'left as it is (-NoRollback)'
        return $true
    }
    if ($Run.Previous -eq '') {
        Write-Note -Text ('nothing to go back to: no revision before this one was ready. ' +
            'The objects stay, to be looked at or deployed over.')
        return $true
    }
    $failed = $Run.Reason
    $Run.Rollback = 'failed'
    if (Restore-Revision -Number ([int] $Run.Previous)) {
        $Run.Rollback = 'done'
        Write-Alarm -Text ("rolled back to what was revision $($Run.Previous) (it is $($Run.Revision) now); " +
            'other objects keep what was applied')
        return $true
    }
    $Run.Reason = "$failed; and the rollback to revision $($Run.Previous): $($Run.Why)"
    Write-Alarm -Text "FAIL  rollback to revision $($Run.Previous): $($Run.Why)"
    return $false
}

# Applies what the revision was, waits and tests.
function Restore-Revision {
    param([int] $Number)
    Write-Line
    Write-Line -Text "$($Run.Bold)== rollback$($Run.Plain)  ($(Get-Elapsed))"
    $file = Export-Revision -Number $Number
    if ($file -eq '') { return $false }
    $apply = @('apply', '--server-side', '--force-conflicts', "--field-manager=$Manager", '-f', $file)
    if (-not (Invoke-Announced -Command ($Run.Cluster + $apply))) {
        $Run.Why = "revision $Number cannot be applied"
        return $false
    }
    if (-not (Wait-Rollout)) { return $false }
    $Run.ImageId = ''
    if (-not (Test-Smoke -AnyCommit)) { return $false }
    Complete-Test
    Read-Live
    return $true
}

# What is JSON in $Run.Answer. PowerShell would read texts that look like a date as one, and write another: they get a mark,
# which ConvertTo-Answer takes off.
function ConvertFrom-Answer {
    return ConvertFrom-Json -AsHashtable -InputObject ($Run.Answer -replace '"(\d{4}-\d\d-\d\dT)', '"@date@$1')
}

function ConvertTo-Answer {
    param([object] $From)
    return (ConvertTo-Json -InputObject $From -Depth 100) -replace '"@date@', '"'
}

# A file with the Deployment as the revision was; '', and why, if there is none. Not `kubectl rollout undo`: what only the older
# revision had would then belong to that command, and no later release could take it away. The template is the revision's own to
# the last field, so Kubernetes takes up its ReplicaSet again.
function Export-Revision {
    param([int] $Number)
    $revisions = Get-Revision
    if ($null -eq $revisions) { return '' }
    $wanted = @($revisions | Where-Object -FilterScript { $_.Number -eq $Number })
    if ($wanted.Count -eq 0) {
        $Run.Why = "revision $Number is not there any more"
        return ''
    }
    if (-not (Invoke-Kubectl -Argument @('get', 'replicaset', $wanted[0].Name, '-o', 'json'))) { return '' }
    $set = ConvertFrom-Answer
    if (-not (Invoke-Kubectl -Argument @('get', 'deployment', $App, '-o', 'json'))) { return '' }
    $file = Get-TempPath -Name 'revision.json'
    Write-Text -Path $file -Text (ConvertTo-Answer -From (Join-Revision -Set $set -Deployment (ConvertFrom-Answer)))
    return $file
}

# The Deployment as it is, but for the revision's template and annotations.
function Join-Revision {
    param([object] $Set, [object] $Deployment)
    $annotations = @{}
    foreach ($entry in (Get-Field -From $Set -Path @('metadata', 'annotations') -Default @{}).GetEnumerator()) {
        if ($entry.Key -notlike 'deployment.kubernetes.io/*' -and $entry.Key -ne "$App/tested") {
            $annotations[$entry.Key] = $entry.Value
        }
    }
    $template = $Set['spec']['template']
    $template['metadata']['labels'].Remove('pod-template-hash')
    $spec = $Deployment['spec']
    return [ordered]@{
        apiVersion = 'apps/v1'
        kind = 'Deployment'
        metadata = [ordered]@{
            name = $App; namespace = $Run.Namespace; annotations = $annotations
            labels = Get-Field -From $Deployment -Path @('metadata', 'labels') -Default @{}
        }
        spec = [ordered]@{
            selector = $spec['selector']
            strategy = $spec['strategy']
            minReadySeconds = Get-Field -From $spec -Path 'minReadySeconds' -Default 0
            revisionHistoryLimit = Get-Field -From $spec -Path 'revisionHistoryLimit' -Default 10
            progressDeadlineSeconds = Get-Field -From $spec -Path 'progressDeadlineSeconds' -Default 600
            template = $template
        }
    }
}

# The live revision has passed its smoke test, so that `rollback` may go back to it.
function Complete-Test {
    $revisions = Get-Revision
    $live = @($revisions | Where-Object -FilterScript { $null -ne $_ -and "$($_.Number)" -eq $Run.Revision })
    if ($live.Count -gt 0) {
        $annotate = @('annotate', 'replicaset', $live[0].Name, "$App/tested=yes", '--overwrite')
        Write-Announcement -Command ($Run.Here + $annotate)
        if (Invoke-Kubectl -Argument $annotate) { return }
    }
    Write-Note -Text "revision $($Run.Revision) could not be marked as tested: $($Run.Why)"
}

# What is live is what the report tells.
function Read-Live {
    $Run.Deployed = $Run.LiveImage
    $Run.Commit = $Run.LiveCommit
    $Run.Digest = if ($Run.LiveImage.Contains('@')) { $Run.LiveImage.Split('@')[1] } else { '' }
}

# ---------------------------------------------------------------------------------------------------- verbs

function Invoke-Up {
    Invoke-Preflight
    if ($Run.DryRun) {
        Show-Rehearsal
        return
    }
    Invoke-Build
    Export-Release
    Invoke-Scan
    Invoke-Apply
    Invoke-Rollout
    Invoke-Health
    Invoke-Smoke
    if ($Run.Applied) { Complete-Test }
    Show-Way
}

# -WhatIf: says what `up` would do, and lets the cluster check it.
function Show-Rehearsal {
    Enter-Stage -Name 'build'
    $Run.Repository = if ($Run.Registry -ne '') { "$($Run.Registry)/$App" } else { $App }
    if ($Run.Image -ne '') { Use-GivenImage }
    if ($Run.Deployed -eq '') { $Run.Deployed = "$($Run.Repository):$($Run.Tag)" }
    if ($Run.Image -eq '') {
        $not = if ($Run.SkipBuild) { ' (no: -SkipBuild)' } else { '' }
        Write-Note -Text "would build $($Run.Deployed) and bring it to the cluster by $($Run.Target)$not"
    }
    Export-Release
    Enter-Stage -Name 'scan'
    $not = if ($Run.SkipScan) { ' (no: -SkipScan)' } else { '' }
    Write-Note -Text "would scan image, secrets and manifests for $($Run.Severity)$not"
    Enter-Stage -Name 'deploy'
    $release = Get-TempPath -Name 'release.yaml'
    foreach ($object in (Get-ManifestObject -Text (Read-Text -Path $release))) {
        Write-Note -Text "would apply $($object.Kind) $($object.Name)"
    }
    if ($Run.Reached) { Compare-Rehearsal } else { Write-Note -Text 'no cluster answers, so nothing is compared' }
    Write-Line
    Write-Line -Text 'Dry run: nothing was built, and nothing changed.'
}

# The cluster's check of what would be applied.
function Compare-Rehearsal {
    $apply = $Run.Cluster + @('apply', '--server-side')
    if (Invoke-Kubectl -Argument @('get', 'namespace', $Run.Namespace, '-o', 'name')) {
        if (-not (Compare-Release)) {
            Write-Pass -Text ('unchanged: the cluster has all of it already ' +
                "(but for the image's digest, which only a build tells)")
        }
        $apply += @('--force-conflicts', "--field-manager=$Manager", '--dry-run=server')
        $apply += @('-f', (Get-TempPath -Name 'release.yaml'))
    } else {
        $file = Export-Namespace
        Write-Note -Text "namespace $($Run.Namespace) does not exist yet: the cluster can check only that"
        $apply += @("--field-manager=$Manager", '--dry-run=server', '-f', $file)
    }
    if (-not (Invoke-Announced -Command $apply)) { Exit-Stage -Reason 'the cluster refuses it' }
}

# How to reach what is live.
function Show-Way {
    $Run.Url = "http://127.0.0.1:$LocalPort"
    $commit = if ($Run.Commit -ne '') { $Run.Commit } else { $Run.LiveCommit }
    $of = if ($Run.Context -ne '') { " of $($Run.Context)" } else { '' }
    Write-Line
    Write-Line -Text ("$($Run.Green)$($Run.Bold)Live$($Run.Plain): $($Run.Model), commit $commit, " +
        "revision $($Run.Revision) in $($Run.Namespace)$of, after $(Get-Elapsed)")
    Write-Line
    Write-Announcement -Command ($Run.Here + @('port-forward', "service/$App", "${LocalPort}:80"))
    $request = (Read-Text -Path (Get-SmokePath -Name 'golden.request.json')).Trim()
    $post = @('Invoke-RestMethod', '-Uri', "$($Run.Url)/predict", '-Method', 'Post')
    Write-Announcement -Command ($post + @('-ContentType', 'application/json', '-Body', $request))
    $ingress = @(Split-Document -Text (Get-Plain) | Where-Object -FilterScript { $_ -cmatch '(?m)^kind: Ingress\r?$' })
    $address = Get-LineValue -Text ($ingress -join "`n") -Name ' *- host'
    if ($address -ne '') {
        $Run.Url = "https://$address"
        Write-Announcement -Command @('Invoke-RestMethod', '-Uri', "$($Run.Url)/model/info")
    }
    Write-Line
}

function Show-State {
    Invoke-Preflight
    Enter-Stage -Name 'status'
    if (-not (Read-Release)) { Exit-Health -Reason $Run.Why }
    Read-Live
    $digest = if ($Run.Digest -ne '') { $Run.Digest } else { 'none, deployed by tag' }
    $commit = if ($Run.LiveCommit -ne '') { $Run.LiveCommit } else { 'unknown' }
    Write-Note -Text "image     $($Run.LiveImage)"
    Write-Note -Text "digest    $digest"
    Write-Note -Text "commit    $commit"
    Write-Note -Text "revision  $($Run.Revision)"
    $pods = Get-Pod
    if ($null -eq $pods) { Exit-Health -Reason $Run.Why }
    foreach ($pod in $pods) {
        $ending = if ($pod.Ending) { ', ending' } else { '' }
        $ready = if ($pod.Ready) { ', ready' } else { ', not ready' }
        Write-Note -Text "pod       $($pod.Name) $($pod.Phase)$ending$ready"
    }
    $state = Get-LockState
    $held = if ($null -ne $state) { $state.Holder } else { 'free' }
    Write-Note -Text "lock      $held"
    $answers = (Open-Forward -Resource "service/$App" -Port 80) -and (Test-Answer -Path 'readyz' -Wanted 200) -and
        (Test-Info -AnyCommit)
    if (-not $answers) { Exit-Health -Reason $Run.Why }
    Write-Note -Text "model     $($Run.Model) ($($Run.ModelDigest))"
    if (-not (Test-Health)) { Exit-Health -Reason $Run.Why }
    Write-Line -Text 'Healthy.'
}

# As many pods as are wanted.
function Test-Health {
    $state = Get-DeploymentState
    if ($null -eq $state) { return $false }
    $reason = if ($state.Reason -ne '') { " ($($state.Reason))" } else { '' }
    $trouble = if ($state.Trouble -ne '') { ": $($state.Trouble)" } else { '' }
    $Run.Why = "pods ready $($state.Ready)/$($state.Desired), of the newest revision $($state.Updated)$reason$trouble"
    return $state.Healthy
}

function Exit-Health {
    param([string] $Reason)
    $Run.Stage = 'health'
    Exit-Stage -Reason $Reason
}

function Undo-Release {
    Invoke-Preflight
    if (-not (Read-Release)) { Exit-Stage -Reason "there is nothing to roll back: $($Run.Why)" }
    $revisions = Get-Revision
    if ($null -eq $revisions) { Exit-Stage -Reason "the revisions cannot be read: $($Run.Why)" }
    $live = if ($Run.Revision -ne '') { [int] $Run.Revision } else { 0 }
    foreach ($revision in $revisions) {
        $marks = if ($revision.Number -eq $live) { '  (live)' } else { '' }
        if (-not $revision.Tested) { $marks += '  (did not pass its smoke test)' }
        Write-Note -Text "revision $($revision.Number)  commit $($revision.Commit)  $($revision.Image)$marks"
    }
    $target = Select-Revision -Revision $revisions -Live $live
    if ($target -eq $live) {
        Write-Pass -Text "unchanged: revision $target is live already"
        return
    }
    $Run.Stage = 'rollback'
    Lock-Release
    if (-not (Restore-Revision -Number $target)) { Exit-Stage -Reason $Run.Why }
    $Run.Rollback = 'done'
    Write-Line -Text "Revision $target is live again, as revision $($Run.Revision)."
}

# The revision to go back to: the newest before the live one that passed its test, or -ToRevision.
function Select-Revision {
    param([object[]] $Revision, [int] $Live)
    if ($Run.ToRevision -eq '') {
        $before = @($Revision | Where-Object -FilterScript { $_.Number -lt $Live -and $_.Tested })
        if ($before.Count -gt 0) { return $before[-1].Number }
        Exit-Stage -Reason ("there is no revision before $Live that passed its smoke test; " +
            '-ToRevision takes any')
    }
    $wanted = [int] $Run.ToRevision
    if (@($Revision | Where-Object -FilterScript { $_.Number -eq $wanted }).Count -gt 0) { return $wanted }
    Exit-Stage -Reason "-ToRevision ${wanted}: there is no such revision; those above are there"
}

function Invoke-SmokeVerb {
    Invoke-Preflight
    $Run.Stage = 'smoke'
    if (-not (Read-Release)) { Exit-Stage -Reason $Run.Why }
    Read-Live
    Invoke-Smoke
    Show-Way
}

function Invoke-Doctor {
    Invoke-Preflight
    Write-Line -Text 'Ready to deploy.'
}

# Of each object that `down` deletes: Name, as kubectl wants it, and Space.
function Get-Doomed {
    foreach ($object in $Run.Objects) {
        if (@('Namespace', 'PersistentVolumeClaim') -ccontains $object.Kind) { continue }
        if ($object.Kind -ceq 'PriorityClass') {
            Write-Note -Text "$($object.Name) stays: a PriorityClass belongs to the cluster, and others may use it"
            continue
        }
        $kind = $object.Kind.ToLowerInvariant() + (Get-ApiGroup -Api $object.Api)
        [pscustomobject]@{ Name = "$kind/$($object.Name)"; Space = $object.Space }
    }
}

# Whether they may be deleted.
function Confirm-Deletion {
    if ($Run.Yes) { return $true }
    if ([Console]::IsInputRedirected) { Exit-Usage -Reason '-Yes: needed for down where nobody can be asked' }
    [Console]::Error.Write('Delete them? [y/N] ')
    $answer = [Console]::In.ReadLine()
    Assert-Uninterrupted
    if ($answer -match '^y') { return $true }
    Write-Line -Text 'Nothing was deleted.'
    return $false
}

function Undo-Everything {
    Invoke-Preflight
    Enter-Stage -Name 'down'
    $doomed = @(Get-Doomed)
    $of = if ($Run.Context -ne '') { " of $($Run.Context)" } else { '' }
    Write-Line -Text "To be deleted from $($Run.Namespace)${of}:"
    foreach ($object in $doomed) { Write-Note -Text "$($object.Name) $($object.Space)" }
    if (Test-Rendered -Kind 'Namespace') {
        Write-Note -Text "namespace/$($Run.Namespace), unless claims or Secrets of yours are in it"
    }
    if (-not (Confirm-Deletion)) { return }
    $Run.Stage = 'deploy'
    if (-not (Invoke-Kubectl -Argument @('get', 'namespace', $Run.Namespace, '-o', 'name'))) {
        Write-Pass -Text "namespace $($Run.Namespace) is gone already"
        return
    }
    Lock-Release
    foreach ($object in $doomed) {
        $where = if ($object.Space -ne '') { @('--namespace', $object.Space) } else { @() }
        if (Invoke-Announced -Command ($Run.Cluster + $where + @('delete', $object.Name, '--ignore-not-found'))) { continue }
        Exit-Stage -Reason "$($object.Name) cannot be deleted"
    }
    Clear-Namespace
}

# Deletes the namespace, unless something of the user's is left in it.
function Clear-Namespace {
    $name = $Run.Namespace
    if (Invoke-Kubectl -Argument @('get', 'persistentvolumeclaims,secrets', '-o', 'name')) {
        $found = Split-Line -Text $Run.Answer
        $kept = @($found | Where-Object -FilterScript { $_ -ne '' -and $_ -notmatch '^secret/default-token' })
    } else {
        $kept = @("what it has: $($Run.Why)")
    }
    if ($kept.Count -gt 0) {
        Write-Line -Text ("Left: namespace/$name with $($kept -join ' ') (and the volumes behind the claims). " +
            "All of it: $($Run.Cluster -join ' ') delete namespace $name")
    } elseif (Test-Rendered -Kind 'Namespace') {
        if (-not (Invoke-Announced -Command ($Run.Cluster + @('delete', 'namespace', $name)))) {
            Exit-Stage -Reason "namespace $name cannot be deleted"
        }
        $Run.LockSince = ''
    }
}

# ---------------------------------------------------------------------------------------------------- start

function Invoke-Verb {
    switch ($Run.Verb) {
        'up' { Invoke-Up }
        'status' { Show-State }
        'rollback' { Undo-Release }
        'smoke' { Invoke-SmokeVerb }
        'doctor' { Invoke-Doctor }
        'down' { Undo-Everything }
    }
}

# What nobody thought of has its line named, and the code of its stage.
function Confirm-Failure {
    param([Management.Automation.ErrorRecord] $Failure)
    if ($Run.Code -ne 0 -or $Run.Interrupted -ne 0) { return }
    $line = if ($null -ne $Failure.InvocationInfo) { $Failure.InvocationInfo.ScriptLineNumber } else { '?' }
    if ($Run.Reason -eq '') { $Run.Reason = "line $line of deploy.ps1 failed: $($Failure.Exception.Message)" }
    $Run.Code = Get-StageCode
    Write-Alarm -Text "FAIL  $($Run.Stage): $($Run.Reason)"
}

# Whatever ended the script.
function Complete-Deployment {
    if (-not $Run.Ended) { # nothing was caught, so it was Ctrl+C
        $Run.Interrupted = 130
        $Run.Reason = "interrupted (SIGINT) during $($Run.Stage)"
    }
    $Run.Ending = 'once'
    $signal = Get-SignalType
    if ($null -ne $signal) { $Run.Heard = [Math]::Max($signal::Count, [int] ($Run.Interrupted -ne 0)) }
    try {
        Close-Child
        if ($Run.Interrupted -ne 0) {
            $Run.Code = $Run.Interrupted
            Write-Alarm -Text $Run.Reason
        }
        if ($Run.Code -ne 0 -and $Run.Applied) {
            if ($Run.Interrupted -eq 0) { Show-Reason }
            if (-not (Restore-Release) -and $Run.Interrupted -eq 0) { $Run.Code = 70 }
        }
    } catch {
        if ($Run.Interrupted -eq 0) { $Run.Code = 70 }
        Write-Alarm -Text "FAIL  rollback: $($_.Exception.Message)"
    } finally {
        Close-Deployment
    }
}

# Nothing stays: no process, no lock, no temporary folder.
function Close-Deployment {
    try {
        Close-Child
        Unlock-Release
        if ($Run.Temp -ne '') {
            Pop-Location
            Remove-Item -LiteralPath $Run.Temp -Recurse -Force
        }
    } catch {
        Write-Alarm -Text "left behind: $($_.Exception.Message)"
    } finally {
        Exit-Deployment
    }
}

function Exit-Deployment {
    $signal = Get-SignalType
    if ($null -ne $signal) { $signal::Forget() }
    if ($Run.Code -ne 0 -and $Run.Code -ne 2) {
        $because = if ($Run.Reason -ne '') { ": $($Run.Reason)" } else { '' }
        Write-Alarm -Text "ended with $($Run.Code) after $(Get-Elapsed)$because"
    }
    Write-Report -Code $Run.Code
    if ($null -ne $Run.Encoding) { [Console]::OutputEncoding = $Run.Encoding }
}

function Initialize-Deployment {
    param([Collections.IDictionary] $Given, [string[]] $Unknown)
    Initialize-Output
    Watch-Signal
    Initialize-Option -Given $Given -Unknown $Unknown
    $temporary = Join-Path -Path ([IO.Path]::GetTempPath()) -ChildPath "$App-deploy.$([guid]::NewGuid().ToString('N'))"
    $Run.Temp = (New-Item -ItemType Directory -Path $temporary).FullName
    Push-Location -LiteralPath $Run.Root
}

try {
    $meant = $Run.DryRun -or @('up', 'rollback', 'down') -notcontains $Run.Verb -or
        $PSCmdlet.ShouldProcess("environment $($Run.Environment)", $Run.Verb)
    $ConfirmPreference = 'None' # -Confirm has asked once
    if ($meant) {
        Initialize-Deployment -Given $PSBoundParameters -Unknown $Rest
        $null = Invoke-Verb
    }
    $Run.Stage = 'done'
    $Run.Ended = $true
} catch {
    $Run.Ended = $true
    Confirm-Failure -Failure $_
} finally {
    Complete-Deployment
}
exit $Run.Code # behind the `finally`, which no control may leave
