//! `clip mount`: returns when the mount answers.

use anyhow::Result;
use clip_engine::{Engine, EngineError};

use crate::{
    args::MountArgs,
    exit::{Outcome, advised_text},
    owner::{client, protocol::MountRequest, server::Owner},
    resolve::{self, MountPlan, Unknown},
};

/// The mount of `args` is served, by the owner of its cache directory; with `--foreground` it has ended.
pub fn run(args: &MountArgs) -> Result<Outcome> {
    mount(&resolve::mount_plan(args, Unknown::Refuse)?)?;
    Ok(Outcome::Good)
}

/// As `run`, for a plan.
pub fn mount(plan: &MountPlan) -> Result<()> {
    let mounted = if plan.foreground { serve_here(plan) } else { client::hand_over(plan, false).map(drop) };
    mounted.map_err(|error| {
        let (clip, dir) = (plan.clip.display(), plan.mountpoint.display());
        anyhow::anyhow!("cannot mount {clip} at {dir}: {}", advised_text(&error, &plan.clip))
    })
}

/// This process is the owner, unless there is one: then that one serves, and this process waits.
fn serve_here(plan: &MountPlan) -> Result<()> {
    client::create_cache_dir(&plan.cache_dir)?;
    clip_engine::memory::keep_little();
    let engine = match Engine::start(plan.wish.to_config(plan.cache_dir.clone())) {
        Ok(engine) => engine,
        Err(EngineError::CacheBusy { pid, .. }) => {
            tracing::info!("process {pid} owns {}: it serves this mount", plan.cache_dir.display());
            let foreground = client::Foreground::begin(plan.owner_wish.stop_timeout)?;
            return foreground.wait(client::hand_over(plan, true)?);
        }
        Err(error) => return Err(error.into()),
    };
    std::env::set_current_dir("/")?;
    let (owner, events) = Owner::new(engine, plan.owner_wish.in_foreground());
    owner.log_cache_room();
    owner.mount(&MountRequest::from_plan(plan, false))?;
    owner.listen()?;
    owner.serve(events)
}
