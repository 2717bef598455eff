#Requires -Version 7.2
# deploy.ps1 from beginning to end against a cluster that is a table, $World. Aliases come before functions, so those that
# Invoke-WorldDeploy sets replace the functions through which deploy.ps1 runs programs and asks the service. What they call is
# found from the scope of deploy.ps1, so that no name here may be one of there, and `$script:` would be its own.
#
# There is no PowerShell where most of this project is tested: this runs in CI, on Windows and on Linux.

BeforeAll {
    # A cluster with nothing in it.
    function Reset-World {
        [Diagnostics.CodeAnalysis.SuppressMessageAttribute('PSUseShouldProcessForStateChangingFunctions', '')]
        param()
        $good = 'r.test/mlflow-live@sha256:' + 'a' * 64
        $poor = 'r.test/mlflow-live@sha256:' + 'b' * 64
        $script:World = @{
            Root = (Resolve-Path -Path (Join-Path -Path $PSScriptRoot -ChildPath '../..')).ProviderPath
            Good = $good; Poor = $poor; Commit = @{ $good = 'good'; $poor = 'poor' }; Model = 'sha256:' + 'c' * 64
            Context = 'kind-dev'; Server = 'https://127.0.0.1:6443'; Reachable = $true; Namespace = $false; Held = $null
            Revisions = @(); Generation = 0; Bad = @{}; Broken = ''; BrokenImage = ''; Faults = @{}; Sent = ''; Owner = @{}
            Calls = [Collections.Generic.List[string]]::new()
        }
    }

    function Get-WorldLive {
        return @($World.Revisions | Sort-Object -Property { $_.Number })[-1]
    }

    function Test-WorldReady {
        param([hashtable] $Revision)
        return -not $World.Bad.ContainsKey($Revision.Image)
    }

    # The annotations that a revision has in the cluster.
    function Get-WorldMark {
        param([hashtable] $Revision)
        $marks = @{
            'deployment.kubernetes.io/revision' = "$($Revision.Number)"
            'mlflow-live/commit' = $World.Commit[$Revision.Image]
        }
        if ($Revision.Tested) { $marks['mlflow-live/tested'] = 'yes' }
        return $marks
    }

    function Get-WorldTemplate {
        param([hashtable] $Revision)
        return @{
            metadata = @{ labels = @{ 'app.kubernetes.io/name' = 'mlflow-live'; 'pod-template-hash' = $Revision.Hash } }
            spec = @{ containers = @(@{ name = 'api'; image = $Revision.Image }) }
        }
    }

    function Get-WorldDeployment {
        $live = Get-WorldLive
        $ready = if (Test-WorldReady -Revision $live) { 1 } else { 0 }
        $marks = Get-WorldMark -Revision $live
        foreach ($name in $World.Owner.Keys) { $marks[$name] = $World.Owner[$name] }
        return @{
            kind = 'Deployment'
            metadata = @{
                name = 'mlflow-live'; generation = $World.Generation; annotations = $marks
                labels = @{ 'app.kubernetes.io/managed-by' = 'kustomize' }; managedFields = @(@{ manager = 'deploy' })
            }
            spec = @{
                replicas = 1; selector = @{ matchLabels = @{ 'app.kubernetes.io/name' = 'mlflow-live' } }
                strategy = @{ type = 'RollingUpdate' }; minReadySeconds = 0; revisionHistoryLimit = 5
                progressDeadlineSeconds = 60; template = (Get-WorldTemplate -Revision $live)
            }
            status = @{
                observedGeneration = $World.Generation; replicas = 1; updatedReplicas = 1
                readyReplicas = $ready; availableReplicas = $ready
                conditions = @(@{ type = 'Progressing'; reason = 'ReplicaSetUpdated' })
            }
        }
    }

    function Get-WorldReplicaSet {
        return @(foreach ($revision in $World.Revisions) {
                $ready = if ((Test-WorldReady -Revision $revision)) { 1 } else { 0 }
                @{
                    kind = 'ReplicaSet'
                    metadata = @{ name = "mlflow-live-$($revision.Hash)"; annotations = (Get-WorldMark -Revision $revision) }
                    spec = @{ template = (Get-WorldTemplate -Revision $revision) }
                    status = @{ readyReplicas = $ready }
                }
            })
    }

    function Get-WorldPod {
        if ($World.Revisions.Count -eq 0) { return @() }
        $live = Get-WorldLive
        $container = @{ name = 'api'; ready = $true; image = $live.Image; imageID = $live.Image; state = @{ running = @{} } }
        $phase = 'Running'
        if (-not (Test-WorldReady -Revision $live)) {
            $phase = 'Pending'
            $container.ready = $false
            $container.imageID = ''
            $container.state = @{ waiting = @{ reason = $World.Bad[$live.Image]; message = 'Back-off' } }
        }
        return @(@{
                kind = 'Pod'; metadata = @{ name = "mlflow-live-$($live.Hash)-x" }
                status = @{ phase = $phase; containerStatuses = @($container); conditions = @() }
            })
    }

    # An answer of a program.
    function Get-WorldSaid {
        param([object] $Out = @(), [string] $Complaint = '', [int] $Code = 0)
        if ($Complaint -ne '') { $Code = 1 }
        return @{ Out = @($Out); Complaint = $Complaint; Code = $Code }
    }

    function Get-WorldJson {
        param([object] $From)
        return Get-WorldSaid -Out (ConvertTo-Json -InputObject $From -Depth 20)
    }

    # The overlay, with what kustomization.yaml says of the image.
    function Get-WorldManifest {
        param([string] $Folder)
        $text = [IO.File]::ReadAllText((Join-Path -Path $Folder -ChildPath 'kustomization.yaml'))
        $found = [regex]::Match($text, 'name: mlflow-live, newName: "(?<name>[^"]*)", (?<by>digest|newTag): "(?<what>[^"]*)"')
        $sign = if ($found.Groups['by'].Value -eq 'digest') { '@' } else { ':' }
        $image = "$($found.Groups['name'].Value)$sign$($found.Groups['what'].Value)"
        if ($found.Success) { $World.Sent = $image }
        return @"
apiVersion: v1
kind: Namespace
metadata:
  labels:
    pod-security.kubernetes.io/enforce: restricted
  name: mlflow-live
---
apiVersion: v1
kind: Service
metadata:
  name: mlflow-live
  namespace: mlflow-live
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: mlflow-live
  namespace: mlflow-live
spec:
  template:
    spec:
      containers:
      - image: $image
        name: api
"@
    }

    # A revision, or one that was there with a new number, as Kubernetes does it for the same template.
    function Add-WorldRevision {
        param([string] $Image)
        $World.Generation++
        $number = $World.Generation
        $known = @($World.Revisions | Where-Object -FilterScript { $_.Image -eq $Image })
        if ($known.Count -gt 0) {
            $known[0].Number = $number
            return
        }
        $hash = $Image.Substring($Image.Length - 4) + $number
        $World.Revisions += @{ Number = $number; Image = $Image; Hash = $hash; Tested = $false }
    }

    function Get-WorldApplied {
        param([string] $Line)
        if ($Line -match '--dry-run=server') { return Get-WorldSaid -Out 'serverside-applied (server dry run)' }
        $World.Namespace = $true
        if ($Line -match 'release\.yaml') { Add-WorldRevision -Image $World.Sent }
        if ($Line -match '-f (\S*revision\.json)') {
            $again = ConvertFrom-Json -InputObject ([IO.File]::ReadAllText($Matches[1])) -AsHashtable
            Add-WorldRevision -Image $again.spec.template.spec.containers[0].image
        }
        return Get-WorldSaid -Out 'serverside-applied'
    }

    function Get-WorldLock {
        param([string] $Line)
        if ($Line -match '^create --dry-run=server') { return Get-WorldSaid -Out '2026-11-21T10:00:00Z' }
        if ($Line -match '^create') {
            if ($null -ne $World.Held) { return Get-WorldSaid -Complaint 'Error from server (AlreadyExists): it exists' }
            $Line -match '-f (\S+)$' | Should -BeTrue
            $text = [IO.File]::ReadAllText($Matches[1])
            $World.Held = @{}
            foreach ($name in @('holder', 'since', 'expires')) {
                $World.Held[$name] = [regex]::Match($text, "`"$name`": *`"([^`"]*)`"").Groups[1].Value
            }
            return Get-WorldSaid -Out 'created'
        }
        if ($Line -match '^delete') {
            $World.Held = $null
            return Get-WorldSaid -Out 'deleted'
        }
        if ($null -eq $World.Held) { return Get-WorldSaid -Complaint 'Error from server (NotFound): configmaps not found' }
        $held = $World.Held
        if ($Line -match 'resourceVersion') { return Get-WorldSaid -Out "7,$($held.expires),$($held.since),$($held.holder)" }
        return Get-WorldSaid -Out "$($held.since),$($held.holder)"
    }

    # What kubectl says to these words, without those that every call has.
    function Get-WorldKubectl {
        param([string] $Line)
        if ($Line -match '^kustomize .*LoadRestrictionsNone (?<folder>.*)$') {
            return Get-WorldSaid -Out (Get-WorldManifest -Folder $Matches['folder'])
        }
        if ($Line -match '^version --client') { return Get-WorldSaid -Out 'Client Version: v1.36.0' }
        if ($Line -match '^config current-context') { return Get-WorldSaid -Out $World.Context }
        if ($Line -match '^config view') {
            $cluster = @{ clusters = @(@{ name = 'it'; cluster = @{ server = $World.Server } }) }
            if ($Line -match 'jsonpath') { return Get-WorldSaid -Out $World.Server }
            return Get-WorldJson -From $cluster
        }
        if (-not $World.Reachable) { return Get-WorldSaid -Complaint 'The connection to the server was refused' }
        if ($Line -match '^version') {
            $versions = @{ clientVersion = @{ gitVersion = 'v1.36.0' }; serverVersion = @{ gitVersion = 'v1.36.1' } }
            return Get-WorldJson -From $versions
        }
        if ($Line -match '^auth can-i') { return Get-WorldSaid -Out 'yes' }
        if ($Line -match '^api-resources') {
            return Get-WorldSaid -Out @(
                'namespaces   ns      v1       false   Namespace', 'services   svc   v1   true   Service'
                'deployments  deploy  apps/v1  true    Deployment'
            )
        }
        if ($Line -match 'mlflow-live-deploy-lock|^create |^replace ') { return Get-WorldLock -Line $Line }
        if ($Line -match '^apply') { return Get-WorldApplied -Line $Line }
        if ($Line -match '^get') { return Get-WorldObject -Line $Line }
        return Get-WorldChange -Line $Line
    }

    function Get-WorldObject {
        param([string] $Line)
        $kind = $Line.Split(' ')[1]
        if ($kind -eq 'namespace') {
            if (-not $World.Namespace) { return Get-WorldSaid -Complaint 'Error from server (NotFound): no namespace' }
            if ($Line -match '-o json') { return Get-WorldJson -From @{ metadata = @{ name = 'mlflow-live'; labels = @{} } } }
            return Get-WorldSaid -Out 'namespace/mlflow-live'
        }
        if ($kind -eq 'deployment') {
            if ($World.Revisions.Count -eq 0) { return Get-WorldSaid -Complaint 'Error from server (NotFound): no deployment' }
            return Get-WorldJson -From (Get-WorldDeployment)
        }
        if ($kind -eq 'replicaset') {
            $name = $Line.Split(' ')[2]
            $sets = @(Get-WorldReplicaSet | Where-Object -FilterScript { $_.metadata.name -eq $name })
            return Get-WorldJson -From $sets[0]
        }
        if ($kind -eq 'events' -or $Line -notmatch '-o json') { return Get-WorldSaid }
        $ready = $World.Revisions.Count -gt 0 -and (Test-WorldReady -Revision (Get-WorldLive))
        $items = switch ($kind) {
            'replicasets' { Get-WorldReplicaSet }
            'pods' { Get-WorldPod }
            'endpointslices' { @{ endpoints = @(@{ conditions = @{ ready = $ready } }) } }
        }
        return Get-WorldJson -From @{ kind = 'List'; items = @($items) }
    }

    function Get-WorldChange {
        param([string] $Line)
        if ($Line -match '^diff') {
            if ($World.Revisions.Count -gt 0 -and (Get-WorldLive).Image -eq $World.Sent) { return Get-WorldSaid }
            return Get-WorldSaid -Out 'diff -u -N /tmp/LIVE-1/apps.v1.Deployment.x /tmp/MERGED-1/apps.v1.Deployment.x' -Code 1
        }
        if ($Line -match '^annotate replicaset (?<name>\S+)') {
            foreach ($revision in $World.Revisions) {
                if ("mlflow-live-$($revision.Hash)" -eq $Matches['name']) { $revision.Tested = $true }
            }
        }
        if ($Line -match '^delete (namespace |deployment)') { $World.Revisions = @() }
        if ($Line -match '^delete namespace') { $World.Namespace = $false }
        return Get-WorldSaid -Out 'done'
    }

    # What a program says. A fault is a pattern, and the complaint of the calls that it matches.
    function Get-WorldProgram {
        param([string[]] $Command)
        $program, $rest = $Command
        $line = @($rest | Where-Object -FilterScript { $_ -notmatch '^--request-timeout' }) -join ' '
        $line = $line -replace '^(--context \S+ )?(--namespace \S+ )?', ''
        $World.Calls.Add("$program $line")
        foreach ($pattern in $World.Faults.Keys) {
            if ("$program $line" -match $pattern) { return Get-WorldSaid -Complaint $World.Faults[$pattern] }
        }
        if ($program -eq 'kubectl') { return Get-WorldKubectl -Line $line }
        if ($program -eq 'git') { return Get-WorldGit -Line $line }
        if ($line -match '^image inspect') { return Get-WorldSaid -Complaint 'Error: No such image' }
        if ($line -match '^buildx imagetools .*--format') {
            $image = @($World.Commit.Keys | Where-Object -FilterScript { $line.Contains($_) })[0]
            $labels = @{ 'org.opencontainers.image.revision' = $World.Commit[$image] }
            return Get-WorldJson -From @{ config = @{ Labels = $labels } }
        }
        return Get-WorldSaid -Out "$program 1.2.3"
    }

    # What the service of the live revision answers: status and body.
    function Get-WorldService {
        param([string] $Path, [string] $Body)
        $live = @($World.Revisions | Where-Object -FilterScript { Test-WorldReady -Revision $_ } |
                Sort-Object -Property { $_.Number })[-1]
        $broken = if ($live.Image -like "*$($World.BrokenImage)") { $World.Broken } else { '' }
        $commit = if ($broken -eq 'commit') { 'another' } else { $World.Commit[$live.Image] }
        if ($Path -match 'readyz') { return 200, '{"ready":true}' }
        if ($Path -match 'model/info') {
            $service = '"service":{"version":"1.0.0","commit":"' + $commit + '"}'
            return 200, ('{"name":"iris","version":"1","digest":"' + $World.Model + '",' + $service + '}')
        }
        if ($Path -match 'metrics') { return 200, ('ml_model_info{digest="' + $World.Model + '",model="iris"} 1.0') }
        if ($Body -match '"long"') { return 400, '{"error":"not a number"}' }
        if ($broken -eq 'golden') { return 200, '{"predictions":[]}' }
        return 200, '{"predictions":[{"class_name":"setosa"},{"class_name":"virginica"}]}'
    }

    # git in a clean checkout, whose objects are those of the real one.
    function Get-WorldGit {
        param([string] $Line)
        if ($Line -match 'objects') { return Get-WorldSaid -Out $World.Root }
        if ($Line -match 'index') { return Get-WorldSaid -Out (Join-Path -Path $World.Root -ChildPath 'no-index') }
        return Get-WorldSaid -Out ('0123456789' * 4)
    }

    # In the place of Invoke-Native.
    function Invoke-WorldNative {
        param([string[]] $Command, [scriptblock] $Each)
        $said = Get-WorldProgram -Command $Command
        $said.Out | ForEach-Object -Process $Each
        if ($said.Complaint -ne '') {
            $problem = [Exception]::new($said.Complaint)
            [Management.Automation.ErrorRecord]::new($problem, 'Native', 'NotSpecified', $null) | ForEach-Object -Process $Each
        }
        $Run.Status = $said.Code
        return $said.Code -eq 0
    }

    # In the place of Open-Forward.
    function Open-WorldForward {
        param([string] $Resource, [int] $Port)
        $World.Calls.Add("forward $Resource $Port")
        $Run.Port = "$Port"
        return $true
    }

    # In the place of Invoke-WebRequest.
    function Invoke-WorldRequest {
        param(
            [string] $Uri, [string] $Method = 'Get', [string] $ContentType = 'application/json', [string] $InFile = '',
            [switch] $SkipHttpErrorCheck, [switch] $NoProxy, [int] $TimeoutSec = 0
        )
        if (-not $SkipHttpErrorCheck -or -not $NoProxy -or $TimeoutSec -eq 0) { throw 'It must ask directly, and not for ever' }
        if ($ContentType -ne 'application/json') { throw "unknown: $ContentType" }
        $body = if ($Method -eq 'Post') { [IO.File]::ReadAllText($InFile) } else { '' }
        $status, $answer = Get-WorldService -Path $Uri -Body $body
        $stream = [IO.MemoryStream]::new([Text.Encoding]::UTF8.GetBytes($answer))
        return [pscustomobject]@{ StatusCode = $status; RawContentStream = $stream }
    }

    # In the place of Test-Tool.
    function Test-WorldTool {
        param([string] $Name)
        return $Name -ne ''
    }

    # deploy.ps1 with these options, and -SkipScan: its exit code, and all that it says.
    function Invoke-WorldDeploy {
        param([hashtable] $Option)
        $World = $script:World
        $World.Calls.Clear()
        $given = @{ SkipScan = $true }
        foreach ($name in $Option.Keys) { $given[$name] = $Option[$name] }
        $said = [IO.StringWriter]::new()
        $complaints = [IO.StringWriter]::new()
        $before = @([Console]::Out, [Console]::Error)
        Set-Alias -Name 'Invoke-Native' -Value 'Invoke-WorldNative'
        Set-Alias -Name 'Open-Forward' -Value 'Open-WorldForward'
        Set-Alias -Name 'Invoke-WebRequest' -Value 'Invoke-WorldRequest'
        Set-Alias -Name 'Test-Tool' -Value 'Test-WorldTool'
        try {
            [Console]::SetOut($said)
            [Console]::SetError($complaints)
            $null = & (Join-Path -Path $World.Root -ChildPath 'deploy.ps1') @given
            $code = $LASTEXITCODE
        } finally {
            [Console]::SetOut($before[0])
            [Console]::SetError($before[1])
        }
        return [pscustomobject]@{ Code = $code; Out = "$said"; Text = "$said$complaints"; Calls = @($World.Calls) }
    }

    $env:DEPLOY_POLL_S = '0.01'
    $env:DEPLOY_STUCK_S = '1'
    $env:DEPLOY_SMOKE_S = '1'
    $env:NO_COLOR = '1'
}

Describe 'deploy.ps1 up' {
    BeforeEach { Reset-World }

    It 'deploys, waits and tests' {
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Good }
        $done.Text | Should -Match 'metrics name the live model'
        $done.Code | Should -Be 0
        (Get-WorldLive).Image | Should -Be $World.Good
        (Get-WorldLive).Tested | Should -BeTrue
        $stages = [regex]::Matches($done.Text, '(?m)^== (\S+)') | ForEach-Object -Process { $_.Groups[1].Value }
        $stages -join ' ' | Should -Be 'preflight build scan deploy roll-out health smoke'
    }

    It 'changes nothing the second time, and says so' {
        (Invoke-WorldDeploy -Option @{ Image = $World.Good }).Code | Should -Be 0
        $generation = $World.Generation
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Good }
        $done.Code | Should -Be 0
        $done.Text | Should -Match 'unchanged: the cluster has all of it already; nothing is applied'
        $World.Generation | Should -Be $generation
        $done.Calls -match '^kubectl apply' | Should -BeNullOrEmpty
    }

    It 'leaves no lock' {
        Invoke-WorldDeploy -Option @{ Image = $World.Good } | Out-Null
        $World.Held | Should -BeNullOrEmpty
    }

    It 'ends with <Code> when <Fault> fails before anything is applied' -ForEach @(
        @{ Fault = '^docker build --target'; Code = 20; Option = @{ Tag = 'mine' } }
        @{ Fault = '^trivy config'; Code = 30; Option = @{ SkipScan = $false } }
        @{ Fault = '^kubectl create --dry-run'; Code = 40; Option = @{} }
        @{ Fault = '^kubectl get replicasets'; Code = 40; Option = @{} }
        @{ Fault = '^kubectl apply .*--dry-run=server'; Code = 40; Option = @{} }
    ) {
        $World.Faults[$Fault] = 'no space left'
        if (-not $Option.ContainsKey('Tag')) { $Option.Image = $World.Good }
        $done = Invoke-WorldDeploy -Option $Option
        $done.Text | Should -Match 'no space left'
        $done.Code | Should -Be $Code
        $World.Revisions | Should -BeNullOrEmpty
        $World.Held | Should -BeNullOrEmpty
    }
}

Describe 'deploy.ps1 up, after a first release' {
    BeforeEach {
        Reset-World
        (Invoke-WorldDeploy -Option @{ Image = $World.Good }).Code | Should -Be 0
    }

    It 'rolls back what cannot start, and keeps 50' {
        $World.Bad[$World.Poor] = 'ImagePullBackOff'
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Poor }
        $done.Text | Should -Match 'FAIL  roll-out: not complete after'
        $done.Text | Should -Match 'ImagePullBackOff'
        $done.Code | Should -Be 50
        (Get-WorldLive).Image | Should -Be $World.Good
        $done.Text | Should -Match 'rolled back to what was revision 1 \(it is 3 now\)'
    }

    It 'rolls back what answers wrongly (<Broken>), and keeps 60' -ForEach @(
        @{ Broken = 'golden'; Says = 'the golden prediction lacks "class_name":"setosa"' }
        @{ Broken = 'commit'; Says = 'the live service is of commit another, not poor' }
    ) {
        $World.Broken = $Broken
        $World.BrokenImage = $World.Poor
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Poor }
        $done.Text | Should -Match ([regex]::Escape($Says))
        $done.Code | Should -Be 60
        (Get-WorldLive).Image | Should -Be $World.Good
    }

    It 'ends with 70 when the rollback fails too' {
        $World.Broken = 'golden'
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Poor }
        $done.Text | Should -Match 'FAIL  rollback to revision 1'
        $done.Code | Should -Be 70
    }

    It 'leaves a failed release with -NoRollback' {
        $World.Bad[$World.Poor] = 'ImagePullBackOff'
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Poor; NoRollback = $true }
        $done.Code | Should -Be 50
        (Get-WorldLive).Image | Should -Be $World.Poor
    }

    It 'goes back by itself with rollback' {
        (Invoke-WorldDeploy -Option @{ Image = $World.Poor }).Code | Should -Be 0
        $done = Invoke-WorldDeploy -Option @{ Verb = 'rollback' }
        $done.Text | Should -Match 'Revision 1 is live again, as revision 3'
        $done.Code | Should -Be 0
        (Get-WorldLive).Image | Should -Be $World.Good
    }

    It 'tells what is live with status, and is 50 when that is not well' {
        $done = Invoke-WorldDeploy -Option @{ Verb = 'status' }
        $done.Text | Should -Match ([regex]::Escape($World.Good))
        $done.Code | Should -Be 0
        $World.Bad[$World.Good] = 'CrashLoopBackOff'
        (Invoke-WorldDeploy -Option @{ Verb = 'status' }).Code | Should -Be 50
    }

    It 'does not fight Argo CD' {
        $World.Owner = @{ 'argocd.argoproj.io/tracking-id' = 'live:apps/Deployment:mlflow-live/mlflow-live' }
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Poor }
        $done.Text | Should -Match 'Argo CD manages mlflow-live \(live\)'
        $done.Code | Should -Be 10
    }
}

Describe 'deploy.ps1 where nothing is changed' {
    BeforeEach { Reset-World }

    It 'has nothing to go back to after a first release' {
        $World.Bad[$World.Good] = 'ImagePullBackOff'
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Good }
        $done.Text | Should -Match 'nothing to go back to'
        $done.Code | Should -Be 50
        $World.Revisions.Count | Should -Be 1
    }

    It 'respects the lock of another' {
        $World.Held = @{ holder = 'anna@laptop pid 4711'; since = '2026-11-21T09:59:00Z'; expires = '9999999999' }
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Good }
        $done.Text | Should -Match 'anna@laptop pid 4711 is deploying since 2026-11-21T09:59:00Z'
        $done.Code | Should -Be 40
        $World.Held.holder | Should -Be 'anna@laptop pid 4711'
        $World.Revisions | Should -BeNullOrEmpty
    }

    It 'wants a remote cluster to be meant' {
        $World.Context = 'cloud'
        $World.Server = 'https://cloud.example:443'
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Good }
        $done.Text | Should -Match 'say -Context cloud, or -Yes'
        $done.Code | Should -Be 10
        (Invoke-WorldDeploy -Option @{ Image = $World.Good; Yes = $true }).Code | Should -Be 0
    }

    It 'says that no cluster answers' {
        $World.Reachable = $false
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Good }
        $done.Text | Should -Match 'does not answer'
        $done.Code | Should -Be 10
    }

    It 'compares with -WhatIf, and changes nothing' {
        $World.Namespace = $true
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Good; WhatIf = $true }
        $done.Text | Should -Match 'Dry run: nothing was built, and nothing changed\.'
        $done.Code | Should -Be 0
        $done.Calls -match '^kubectl apply .*--dry-run=server' | Should -Not -BeNullOrEmpty
        $done.Calls -match '^kubectl (apply|create|replace|delete|annotate)' -notmatch '--dry-run=server' |
            Should -BeNullOrEmpty
        $World.Revisions | Should -BeNullOrEmpty
    }

    It 'deletes with down only when it is told -Yes' {
        (Invoke-WorldDeploy -Option @{ Image = $World.Good }).Code | Should -Be 0
        $done = Invoke-WorldDeploy -Option @{ Verb = 'down'; Yes = $true }
        $done.Text | Should -Match 'To be deleted from mlflow-live'
        $done.Code | Should -Be 0
        $World.Revisions | Should -BeNullOrEmpty
    }

    It 'reports with -Json in one object, of which stdout has nothing else' {
        $done = Invoke-WorldDeploy -Option @{ Image = $World.Good; Json = $true }
        @($done.Out.Trim().Split("`n")).Count | Should -Be 1
        $report = ConvertFrom-Json -InputObject $done.Out -AsHashtable
        $report.code | Should -Be 0
        $report.verb | Should -Be 'up'
        $report.image | Should -Be $World.Good
        $report.rollback | Should -Be 'none'
    }

    It 'ends with 2 and names what is wrong: <Says>' -ForEach @(
        @{ Option = @{ Verb = 'frobnicate' }; Says = 'frobnicate: there is no such verb' }
        @{ Option = @{ Env = 'test' }; Says = '-Env test' }
        @{ Option = @{ Target = 'moon' }; Says = '-Target moon' }
        @{ Option = @{ Target = 'registry' }; Says = '-Target registry: needs -Registry' }
        @{ Option = @{ Timeout = '0' }; Says = '-Timeout 0' }
        @{ Option = @{ Severity = 'high' }; Says = '-Severity high' }
        @{ Option = @{ Namespace = 'Mine' }; Says = '-Namespace Mine' }
        @{ Option = @{ Context = '' }; Says = '-Context: empty' }
        @{ Option = @{ ToRevision = '2' }; Says = '-ToRevision: only for rollback' }
        @{ Option = @{ Verb = 'status'; WhatIf = $true }; Says = '-WhatIf: only for up' }
        @{ Option = @{ Image = 'a:b'; Tag = 'c' }; Says = '-Tag: not together with -Image' }
        @{ Option = @{ With = 'mlflow', 'argocd' }; Says = '-With argocd: that component is for Argo CD' }
    ) {
        $done = Invoke-WorldDeploy -Option $Option
        $done.Text | Should -Match ([regex]::Escape($Says))
        $done.Code | Should -Be 2
        $done.Calls | Should -BeNullOrEmpty
    }
}
